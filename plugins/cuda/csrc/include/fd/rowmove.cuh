// Rows of bytes from place to place: `map(row)` says where each goes.
#pragma once
#include "fd/overlap.cuh"
#include "fd/types.h"

namespace fd {

// Rows of `bytes` adjacent bytes, `stride` bytes apart.
struct ByteRows {
  char* base;
  int64_t count, bytes, stride;

  __host__ __device__ char* row(int64_t i) const { return base + i * stride; }
};

// to null: nothing happens. from null: every 4 bytes become `fill`.
struct RowMove {
  char* to;
  const char* from;
  uint32_t fill;
};
constexpr RowMove kStay{nullptr, nullptr, 0};

template <typename Word>
__device__ __forceinline__ Word filled(uint32_t x) {
  return static_cast<Word>(x);
}
template <>
__device__ __forceinline__ uint4 filled<uint4>(uint32_t x) {
  return make_uint4(x, x, x, x);
}

constexpr int kWordsPerThread = 4, kMoveThreads = 128;

// `chunks` blocks share a row of `words`.
template <typename Word, typename Map>
__global__ void move_rows(Map map, int64_t words, int64_t chunks) {
  let_next_start();
  wait_for_inputs();
  const RowMove move = map(blockIdx.x / chunks);
  if (move.to == nullptr) return;
  const int64_t first = blockIdx.x % chunks * kWordsPerThread * kMoveThreads + threadIdx.x;
  Word kept[kWordsPerThread];
#pragma unroll
  for (int k = 0; k < kWordsPerThread; ++k) {
    const int64_t at = first + k * kMoveThreads;
    kept[k] = filled<Word>(move.fill);
    if (at < words && move.from != nullptr) kept[k] = reinterpret_cast<const Word*>(move.from)[at];
  }
#pragma unroll
  for (int k = 0; k < kWordsPerThread; ++k) {
    const int64_t at = first + k * kMoveThreads;
    if (at < words) reinterpret_cast<Word*>(move.to)[at] = kept[k];
  }
}

}  // namespace fd

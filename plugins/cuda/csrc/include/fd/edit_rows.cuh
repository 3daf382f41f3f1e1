// Logits edited in place: a block owns a span of one row, so that nothing is written twice.
#pragma once
#include "fd/reduce.cuh"

namespace fd {

constexpr int kEditThreads = 256, kEditSpan = 8192;

template <typename T>
struct EditRows {
  T* data;
  int64_t step, width, spans;

  __device__ __forceinline__ int64_t row() const { return blockIdx.x / spans; }
  __device__ __forceinline__ int64_t begin() const { return blockIdx.x % spans * kEditSpan; }
  __device__ __forceinline__ int64_t end() const { return min(begin() + kEditSpan, width); }
  __device__ __forceinline__ T* at(int64_t row) const { return data + row * step; }
};

// Lists of token ids per row. Offsets outside [0, count], which only the device sees, are clipped.
struct RaggedIds {
  const int32_t* offsets;  // [n + 1]
  const int64_t* ids;
  int64_t count;

  __device__ __forceinline__ int64_t offset(int64_t row) const {
    return min(max(static_cast<int64_t>(offsets[row]), int64_t{0}), count);
  }
};

}  // namespace fd

#include "fd/overlap.cuh"
#include "fd/types.h"

namespace fd {

// Codes of [size_k, columns], `bits` each, packed along k.
struct GptqSource {
  const uint32_t* words;
  const int32_t* perm;  // null: none
  int64_t size_k, columns;
  int bits;

  // 0 for a row of perm that does not exist.
  __device__ __forceinline__ uint32_t get(int64_t k, int64_t n) const {
    const int64_t row = perm != nullptr ? perm[k] : k;
    if (row < 0 || row >= size_k) return 0;
    const int pack = 32 / bits, shift = static_cast<int>(row % pack) * bits;
    return words[row / pack * columns + n] >> shift & ((1u << bits) - 1);
  }
};

// A word a thread, by the inverse of the contract's formulas.
__global__ void gptq_marlin_repack_words(GptqSource from, int64_t across, int64_t count,
                                         uint32_t* out) {
  let_next_start();
  wait_for_inputs();
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const bool four = from.bits == 4;
  const int per_tile = four ? 128 : 256, w = static_cast<int>(at % per_tile);
  const int64_t tile = at / per_tile, k0 = tile / across * 16, n0 = tile % across * 64;
  const int lane = four ? w / 4 : w / 8, warp = four ? w % 4 : w % 8 / 2;
  uint32_t word = 0;
  for (int slot = 0; slot < 32 / from.bits; ++slot) {
    // places 0 2 4 6 1 3 5 7, or 0 2 1 3
    const int v = four ? slot % 4 * 2 + slot / 4 : slot % 2 * 2 + slot / 2;
    const int i = v % 4, half = four ? v / 4 : w % 2;
    const int k = i / 2 * 8 + lane % 4 * 2 + i % 2, n = warp * 16 + half * 8 + lane / 4;
    word |= from.get(k0 + k, n0 + n) << (slot * from.bits);
  }
  out[at] = word;
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/ids.h"

namespace fd {

inline void gptq_marlin_repack_check(Tensor b_q_weight, Tensor perm, int64_t size_k, int64_t size_n,
                                     int64_t num_bits, Tensor out) {
  const char* op = "gptq_marlin_repack";
  if (num_bits != 4 && num_bits != 8)
    fail("ValueError", op, ".num_bits: want 4 or 8, have ", num_bits);
  if (size_k % 16 != 0 || size_k < 0)
    fail("ValueError", op, ".size_k: want a multiple of 16, have ", size_k);
  if (size_n % 64 != 0 || size_n < 0)
    fail("ValueError", op, ".size_n: want a multiple of 64, have ", size_n);
  const int64_t pack = 32 / num_bits;
  Check{op, "b_q_weight", b_q_weight}.rank(2).dim(0, size_k / pack).dim(1, size_n).contiguous();
  Check{op, "b_q_weight", b_q_weight}.dtype<int32_t>("int32");
  Check{op, "perm", perm}.rank(1).dtype<int32_t>("int32").contiguous();
  if (perm.numel() != 0) Check{op, "perm", perm}.dim(0, size_k);
  Check{op, "out", out}.rank(2).dim(0, size_k / 16).dim(1, size_n * 16 / pack);
  Check{op, "out", out}.dtype<int32_t>("int32").contiguous();
  same_device(op, b_q_weight, {perm, out});
}

void gptq_marlin_repack(Tensor b_q_weight, Tensor perm, int64_t size_k, int64_t size_n,
                        int64_t num_bits, Tensor out) {
  const char* op = "gptq_marlin_repack";
  gptq_marlin_repack_check(b_q_weight, perm, size_k, size_n, num_bits, out);
  const Launch on = launch_on(op, b_q_weight);
  check_range(on, "perm", ids_of(op, "perm", perm), 0, size_k);
  const int32_t* order = perm.numel() != 0 ? perm.data<int32_t>() : nullptr;
  const GptqSource from{b_q_weight.data<uint32_t>(), order, size_k, size_n,
                        static_cast<int>(num_bits)};
  run_overlapped(on, gptq_marlin_repack_words, dim3((out.numel() + 255) / 256), dim3(256), 0, from,
                 size_n / 64, out.numel(), out.data<uint32_t>());
}
FD_EXPORT(gptq_marlin_repack)

}  // namespace fd
#endif

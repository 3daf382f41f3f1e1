// Prefix sums over the slots of a batch: each block of a slot sums what lies before it.
#pragma once
#include "fd/overlap.cuh"
#include "fd/reduce.cuh"

namespace fd {

// Sum over a block; every thread gets it. `scratch`: 32 elements, free again after the next
// barrier.
__device__ __forceinline__ int64_t block_count(int64_t x, int64_t* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < warps; ++w) x += scratch[w];
  return x;
}

// Sum of f(0) .. f(slot - 1).
template <typename F>
__device__ __forceinline__ int64_t sum_before(int64_t slot, int64_t* scratch, F f) {
  int64_t sum = 0;
  for (int64_t b = threadIdx.x; b < slot; b += blockDim.x) sum += f(b);
  return block_count(sum, scratch);
}

}  // namespace fd

// How persistent blocks find their work: each block counts every sequence's items, so a captured
// graph serves other lengths than it was recorded with. Lists that fit are read once per block.
#pragma once
#include "fd/attention.cuh"
#include "fd/reduce.cuh"

namespace fd {

// prefix[s + 1] = prefix[s] + count(s) for all sequences; returns the sum. Called by all `Threads`
// of the block, `prefix` in shared memory; ends with a barrier.
template <int Threads, typename Count>
__device__ __forceinline__ int plan_prefix(int sequences, int* prefix, Count count) {
  __shared__ int sums[Threads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int carry = 0;
  if (threadIdx.x == 0) prefix[0] = 0;
  for (int base = 0; base < sequences; base += Threads) {
    const int s = base + threadIdx.x;
    int sum = s < sequences ? count(s) : 0;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += below;
    }
    __syncthreads();  // the last round's sums have been read
    if (lane == kWarp - 1) sums[warp] = sum;
    __syncthreads();
    int before = carry;
#pragma unroll
    for (int w = 0; w < Threads / kWarp; ++w) {
      if (w < warp) before += sums[w];
      carry += sums[w];
    }
    if (s < sequences) prefix[s + 1] = before + sum;
  }
  __syncthreads();
  return carry;
}

// The sequence whose items include `at`: prefix[s] <= at < prefix[s + 1].
__device__ __forceinline__ int plan_owner(const int* prefix, int sequences, int at) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (prefix[middle] <= at ? low : high) = middle;
  }
  return low;
}

}  // namespace fd

// Sums and maxima over a warp and a block, in a fixed order: results repeat bit for bit.
#pragma once
#include "fd/types.h"

namespace fd {

constexpr int kWarp = 32;

struct Sum {
  __device__ static float neutral() { return 0.f; }
  __device__ static float of(float a, float b) { return a + b; }
};
struct Max {
  __device__ static float neutral() { return -INFINITY; }
  __device__ static float of(float a, float b) { return fmaxf(a, b); }
};

// Every lane gets the result.
template <typename Op>
__device__ __forceinline__ float warp_reduce(float x) {
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) x = Op::of(x, __shfl_xor_sync(0xffffffffu, x, d));
  return x;
}

// Every thread gets the result. `scratch`: 32 floats of shared memory, free again after the next
// barrier of the caller; blocks are whole warps.
template <typename Op>
__device__ __forceinline__ float block_reduce(float x, float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  x = warp_reduce<Op>(x);
  if (warps == 1) return x;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = lane < warps ? scratch[lane] : Op::neutral();
  return warp_reduce<Op>(x);
}

}  // namespace fd

// Attention heads spread over a few lanes of a warp.
#pragma once
#include "fd/norm.cuh"

namespace fd {

// Sum over groups of `lanes` neighbours, a power of two; every lane gets its group's.
__device__ __forceinline__ float group_sum(float x, int lanes) {
  for (int d = lanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

}  // namespace fd

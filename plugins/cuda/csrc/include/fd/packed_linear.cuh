// Packed weights for many rows of x: back to 16-bit floats, a strip of rows of W at a time.
#pragma once
#include "fd/packed_weights.cuh"

namespace fd {

// out [16 * tiles, depth] = the weights of tiles from `first` on; a warp takes windows in turn.
template <typename Weights, typename T>
__global__ void __launch_bounds__(256)
    linear_unpack(Weights weights, int64_t first, int64_t tiles, int64_t depth, T* out) {
#if FD_SM80
  __shared__ uint4 ring[8][32 * Weights::kUnits + Weights::kExtra];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint4* slot = ring[warp];
  const int64_t all = tiles * weights.windows;
  for (int64_t i = int64_t{blockIdx.x} * 8 + warp; i < all; i += int64_t{gridDim.x} * 8) {
    const int64_t tile = i / weights.windows, window = i % weights.windows;
    weights.fetch(slot, static_cast<int>(first + tile), static_cast<int>(window), lane);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    const float2 scale = weights.row_scales(slot, first + tile, lane);
#pragma unroll
    for (int s = 0; s < Weights::kWindow / 32; ++s) {
      const int64_t k = window * Weights::kWindow + 32 * s + lane % 4 * 8;
      if (k >= depth) continue;
      uint32_t a[2][4];
      weights.operands(a, slot, s, lane);
#pragma unroll
      for (int hi = 0; hi < 2; ++hi) {
        const uint32_t codes[4] = {a[0][hi], a[0][2 + hi], a[1][hi], a[1][2 + hi]};
        const T* pairs = reinterpret_cast<const T*>(codes);
        Vec<T, 8> real;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          real[j] = from_float<T>(to_float(pairs[j]) * (hi ? scale.y : scale.x));
        *reinterpret_cast<Vec<T, 8>*>(out + (tile * 16 + lane / 4 + 8 * hi) * depth + k) = real;
      }
    }
    __syncwarp();
  }
#endif
}

}  // namespace fd

// Device side of the norms: a row spread over a block, or a head over a few lanes.
#pragma once
#include "fd/overlap.cuh"
#include "fd/pack.cuh"
#include "fd/reduce.cuh"

namespace fd {

// f(v, at) for the vectors of a row that this thread holds; `at`: first element.
template <typename T, int V, typename F>
__device__ __forceinline__ void each_pack(int64_t width, F&& f) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t at = (int64_t{v} * blockDim.x + threadIdx.x) * kPack<T>;
    if (at < width) f(v, at);
  }
}

template <typename T>
__device__ __forceinline__ float sum_squares(const Pack<T>& v) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) sum += to_float(v[i]) * to_float(v[i]);
  return sum;
}

// 1 / sqrt(mean square + eps) of a row, from every thread's part of the sum of squares.
__device__ __forceinline__ float rms_scale(float sum, int64_t width, float eps, float* scratch) {
  return rsqrtf(block_reduce<Sum>(sum, scratch) / static_cast<float>(width) + eps);
}

// x * scale * weight, with one rounding.
template <typename T, typename W>
__device__ __forceinline__ Pack<T> scaled(const Pack<T>& x, float scale, const W* weight) {
  const Floats<kPack<T>, W> w(weight);
  Pack<T> out;
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) out[i] = from_float<T>(to_float(x[i]) * scale * w[i]);
  return out;
}

}  // namespace fd

// Quantisation of floats to e4m3 codes: loops over what one thread holds.
#pragma once
#include "fd/fp8.cuh"
#include "fd/overlap.cuh"
#include "fd/pack.cuh"
#include "fd/reduce.cuh"

namespace fd {

// Largest magnitude among this thread's elements of n, NaN counting as nothing.
template <typename T, int N>
__device__ __forceinline__ float largest_of(const T* x, int64_t n, int thread, int threads) {
  float most = 0.f;
  for (int64_t at = int64_t{thread} * N; at < n; at += int64_t{threads} * N) {
    const Floats<N, T> v(x + at);
#pragma unroll
    for (int i = 0; i < N; ++i) most = fmaxf(most, fabsf(v[i]));
  }
  return most;
}

// Codes of this thread's elements of n, each through `scaled`.
template <typename T, int N, typename F>
__device__ __forceinline__ void encode(const T* x, int64_t n, e4m3* to, int thread, int threads,
                                       F scaled) {
  for (int64_t at = int64_t{thread} * N; at < n; at += int64_t{threads} * N) {
    const Floats<N, T> v(x + at);
    float y[N];
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = scaled(v[i]);
    *reinterpret_cast<Vec<e4m3, N>*>(to + at) = e4m3_codes<N>(y);
  }
}

// 1 / scale, the largest float where that is infinite: zeros stay zeros.
__device__ __forceinline__ float inverse(float scale) {
  return fminf(__fdiv_rn(1.f, scale), 3.402823466e38f);
}

}  // namespace fd

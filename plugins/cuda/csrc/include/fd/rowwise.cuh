// Element maps over rows: out = f(x) and out = f(a, b), N adjacent elements a thread.
#pragma once
#include "fd/overlap.cuh"
#include "fd/types.h"

namespace fd {

// `chunks` blocks share a row.
struct RowPlace {
  int64_t row, at;
};
template <int N>
__device__ __forceinline__ RowPlace row_place(int64_t chunks) {
  const int64_t chunk = blockIdx.x % chunks;
  return {blockIdx.x / chunks, (chunk * blockDim.x + threadIdx.x) * N};
}

template <typename T, int N, typename F>
__global__ void map_rows(const T* x, int64_t x_step, T* out, int64_t out_step, int64_t width,
                         int64_t chunks, F f) {
  let_next_start();
  wait_for_inputs();
  const auto [row, at] = row_place<N>(chunks);
  if (at >= width) return;
  Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(x + row * x_step + at);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = from_float<T>(f(to_float(v[i])));
  *reinterpret_cast<Vec<T, N>*>(out + row * out_step + at) = v;
}

template <typename T, int N, typename F>
__device__ __forceinline__ void zip_at(const T* a, const T* b, T* out, F f) {
  Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(a);
  const Vec<T, N> w = *reinterpret_cast<const Vec<T, N>*>(b);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = from_float<T>(f(to_float(v[i]), to_float(w[i])));
  *reinterpret_cast<Vec<T, N>*>(out) = v;
}

template <typename T, int N, typename F>
__global__ void zip_rows(const T* a, int64_t a_step, const T* b, int64_t b_step, T* out,
                         int64_t out_step, int64_t width, int64_t chunks, F f) {
  let_next_start();
  wait_for_inputs();
  const auto [row, at] = row_place<N>(chunks);
  if (at < width)
    zip_at<T, N>(a + row * a_step + at, b + row * b_step + at, out + row * out_step + at, f);
}

}  // namespace fd

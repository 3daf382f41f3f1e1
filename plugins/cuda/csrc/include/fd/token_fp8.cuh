// Rows of floats as e4m3 codes with a scale each.
#pragma once
#include "fd/fp8_rows.cuh"

namespace fd {

// `rows` rows of `depth`, `step` apart; codes up to `out_rows` and scales up to `slots` beyond them
// become 0. `bound`: no scale exceeds that of this magnitude; none if it is not positive.
struct TokenFp8 {
  int64_t rows, out_rows, slots, depth, step;
  float bound;
};

constexpr int kTokenHeld = 4;  // vectors of a row that a thread reads once

// N elements at a time. The blocks of a row (gridDim.y: 1 or kTokenHeld) each find its scale and
// share its codes.
template <typename T, int N>
__global__ void __launch_bounds__(1024)
    token_fp8_rows(const T* x, e4m3* to, float* scales, TokenFp8 all) {
  __shared__ float scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  const int64_t row = blockIdx.x, stride = int64_t{blockDim.x} * N;
  const int part = blockIdx.y, parts = gridDim.y;
  x += row * all.step, to += row * all.depth;
  if (row >= all.rows) {
    if (part > 0) return;
    if (row < all.slots && threadIdx.x == 0) scales[row] = 0.f;
    for (int64_t i = threadIdx.x; row < all.out_rows && i < all.depth; i += blockDim.x)
      to[i].bits = 0;
    return;
  }
  Vec<T, N> held[kTokenHeld] = {};
#pragma unroll
  for (int i = 0; i < kTokenHeld; ++i) {
    const int64_t at = int64_t{threadIdx.x} * N + i * stride;
    if (at < all.depth) held[i] = *reinterpret_cast<const Vec<T, N>*>(x + at);
  }
  const int64_t rest = min(kTokenHeld * stride, all.depth);
  float most = largest_of<T, N>(x + rest, all.depth - rest, threadIdx.x, blockDim.x);
#pragma unroll
  for (int i = 0; i < kTokenHeld * N; ++i) most = fmaxf(most, fabsf(to_float(held[i / N][i % N])));
  most = block_reduce<Max>(most, scratch);
  const float scale = __fdiv_rn(all.bound > 0 && most > all.bound ? all.bound : most, kE4m3Largest);
  const float divisor = scale == 0 ? 1.f : scale;
  if (threadIdx.x == 0 && part == 0) scales[row] = scale;
  const auto scaled = [=](float v) { return __fdiv_rn(v, divisor); };
#pragma unroll
  for (int i = 0; i < kTokenHeld; ++i) {
    const int64_t at = int64_t{threadIdx.x} * N + i * stride;
    if (at < all.depth && (parts == 1 || i == part)) {
      float y[N];
#pragma unroll
      for (int j = 0; j < N; ++j) y[j] = scaled(to_float(held[i][j]));
      *reinterpret_cast<Vec<e4m3, N>*>(to + at) = e4m3_codes<N>(y);
    }
  }
  encode<T, N>(x + rest, all.depth - rest, to + rest, part * blockDim.x + threadIdx.x,
               parts * blockDim.x, scaled);
}

}  // namespace fd

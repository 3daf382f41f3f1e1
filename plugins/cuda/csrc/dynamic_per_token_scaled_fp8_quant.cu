#include "fd/fp8_rows.cuh"

namespace fd {

// `rows` rows of `depth`; codes up to `out_rows` and scales up to `slots` beyond them become 0.
struct TokenFp8 {
  int64_t rows, out_rows, slots, depth;
  float bound;
};

// One block a row.
template <typename T, int N>
__global__ void dynamic_per_token_scaled_fp8_quant_rows(const T* x, e4m3* to, float* scales,
                                                        TokenFp8 all) {
  __shared__ float scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  const int64_t row = blockIdx.x;
  x += row * all.depth, to += row * all.depth;
  if (row >= all.rows) {
    if (row < all.slots && threadIdx.x == 0) scales[row] = 0.f;
    for (int64_t i = threadIdx.x; row < all.out_rows && i < all.depth; i += blockDim.x)
      to[i].bits = 0;
    return;
  }
  const float mine = largest_of<T, N>(x, all.depth, threadIdx.x, blockDim.x);
  const float most = block_reduce<Max>(mine, scratch);
  const float scale = __fdiv_rn(all.bound > 0 && most > all.bound ? all.bound : most, kE4m3Largest);
  const float divisor = scale == 0 ? 1.f : scale;
  if (threadIdx.x == 0) scales[row] = scale;
  encode<T, N>(x, all.depth, to, threadIdx.x, blockDim.x,
               [=](float v) { return __fdiv_rn(v, divisor); });
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/fp8.h"
#include "fd/rowwise.h"

namespace fd {

inline int64_t token_fp8_rows(Tensor t) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.ndim(); ++i) rows *= t.size(i);
  return rows;
}

inline TokenFp8 token_fp8(Tensor out, Tensor input, Tensor scales, double scale_ub) {
  const char* op = "dynamic_per_token_scaled_fp8_quant";
  if (input.ndim() == 0) fail("ValueError", op, ".input: want at least one dimension, have none");
  Check{op, "input", input}.contiguous();
  const int64_t rows = token_fp8_rows(input), depth = input.size(-1);
  Check{op, "out", out}.rank(input.ndim()).dim(-1, depth).dtype<e4m3>("float8_e4m3fn").contiguous();
  if (token_fp8_rows(out) < rows)
    fail("ValueError", op, ".out: want at least ", rows, " rows, have ", shape_text(out));
  Check{op, "scales", scales}.dtype<float>("float32").contiguous();
  const int64_t slots = Check{op, "scales", scales}.slot_count();
  if (slots < rows) fail("ValueError", op, ".scales: want at least ", rows, ", have ", slots);
  same_device(op, input, {out, scales});
  return {rows, token_fp8_rows(out), slots, depth, static_cast<float>(scale_ub)};
}

void dynamic_per_token_scaled_fp8_quant(Tensor out, Tensor input, Tensor scales, double scale_ub) {
  const char* op = "dynamic_per_token_scaled_fp8_quant";
  const TokenFp8 all = token_fp8(out, input, scales, scale_ub);
  const Launch on = launch_on(op, input);
  dispatch_float(op, "input", input, [&](auto tag) {
    using T = decltype(tag);
    const T* from = input.data<T>();
    e4m3* to = out.data<e4m3>();
    const dim3 grid(std::max(all.slots, all.out_rows)), block(256);
    const bool packs =
        packable<T>(all.depth, {}, {from}) && reinterpret_cast<uintptr_t>(to) % kPack<T> == 0;
    if (packs)
      run_overlapped(on, dynamic_per_token_scaled_fp8_quant_rows<T, kPack<T>>, grid, block, 0, from,
                     to, scales.data<float>(), all);
    else
      run_overlapped(on, dynamic_per_token_scaled_fp8_quant_rows<T, 1>, grid, block, 0, from, to,
                     scales.data<float>(), all);
  });
}
FD_EXPORT(dynamic_per_token_scaled_fp8_quant)

}  // namespace fd
#endif

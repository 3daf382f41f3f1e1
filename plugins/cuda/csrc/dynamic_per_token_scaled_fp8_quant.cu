#include "fd/token_fp8.cuh"

#ifndef __CUDACC_RTC__
#include "fd/token_fp8.h"

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
  return {rows, token_fp8_rows(out), slots, depth, depth, static_cast<float>(scale_ub)};
}

void dynamic_per_token_scaled_fp8_quant(Tensor out, Tensor input, Tensor scales, double scale_ub) {
  const char* op = "dynamic_per_token_scaled_fp8_quant";
  const TokenFp8 all = token_fp8(out, input, scales, scale_ub);
  const Launch on = launch_on(op, input);
  dispatch_float(op, "input", input, [&](auto tag) {
    token_fp8_launch<decltype(tag)>(on, input, out.data<e4m3>(), scales.data<float>(), all);
  });
}
FD_EXPORT(dynamic_per_token_scaled_fp8_quant)

}  // namespace fd
#endif

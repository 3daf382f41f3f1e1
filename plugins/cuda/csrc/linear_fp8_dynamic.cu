// linear_fp8_dynamic(x, codes, scales, bias, out): a dense layer over e4m3 weights [N, K] with a
// scale per output, whose activations become e4m3 token by token.
#include "fd/token_fp8.cuh"

#ifndef __CUDACC_RTC__
#include "fd/float8_product.h"
#include "fd/linear.h"
#include "fd/token_fp8.h"
#include "fd/workspace.h"

namespace fd {

inline void check_fp8_rows(const char* op, Tensor x, Tensor codes, Tensor scales, Tensor out) {
  if (!half_width(x)) fail("TypeError", op, ".x: want bfloat16 or float16, have ", dtype_text(x));
  Check{op, "codes", codes}.rank(2).dim(0, out.size(1)).dim(1, x.size(1));
  Check{op, "codes", codes}.dtype<e4m3>("float8_e4m3fn").contiguous();
  Check{op, "scales", scales}.rank(1).dim(0, codes.size(0)).dtype<float>("float32").contiguous();
  if (codes.size(1) % 16 != 0 || codes.size(0) % 16 != 0 || !aligned16(codes.data<void>()))
    fail("ValueError", op, ".codes: want multiples of 16 by 16 at a 16-byte boundary, have ",
         shape_text(codes));
}

void linear_fp8_dynamic(Tensor x, Tensor codes, Tensor scales, OptTensor bias, Tensor out) {
  const char* op = "linear_fp8_dynamic";
  const LinearSink sink = linear_sink(op, x, bias, out);
  check_fp8_rows(op, x, codes, scales, out);
  same_device(op, x, {codes, scales, bias, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  if (on.sm() < kFloat8From)
    fail("RuntimeError", op, ": want compute capability 8.9 or newer, have ", on.sm() / 10, ".",
         on.sm() % 10, "; use quantization w8a8");
  const int64_t rows = x.size(0), depth = x.size(1), bytes = (rows * depth + 255) / 256 * 256;
  auto* held = static_cast<e4m3*>(workspace(
      on, Scratch::kLinearInput, static_cast<size_t>(bytes) + static_cast<size_t>(rows) * 4));
  auto* x_scales = reinterpret_cast<float*>(held + bytes);
  const TokenFp8 tokens{rows, rows, rows, depth, x.stride(0), 0.f};
  is<bf16>(x) ? token_fp8_launch<bf16>(on, x, held, x_scales, tokens)
              : token_fp8_launch<f16>(on, x, held, x_scales, tokens);
  const Float8Product product{held, codes.data<e4m3>(), rows, codes.size(0), depth};
  float8_product(on, product, {sink, x_scales, scales.data<float>(), 1, 1}, true);
}
FD_EXPORT(linear_fp8_dynamic)

}  // namespace fd
#endif

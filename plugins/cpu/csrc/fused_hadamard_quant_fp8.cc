#include <cmath>

#include "fd/token_quant.h"

namespace fd {
namespace {

constexpr int kBlock = 32;

// One butterfly step over 32 values, each result rounded to bfloat16.
template <int H>
void butterfly(float* x) {
  float sums[kBlock];
  for (int l = 0; l < kBlock; ++l) {
    const float a = x[l & ~H], b = x[l | H];
    sums[l] = (l & H) != 0 ? a - b : a + b;
  }
  for (int l = 0; l < kBlock; ++l) x[l] = to_float(from_float<bf16>(sums[l]));
}

void quantise_block(const bf16* from, float scale, uint8_t* to) {
  alignas(64) float x[kBlock];
  for (int l = 0; l < kBlock; l += kLanes) store16(x + l, load16(from + l));
  butterfly<1>(x);
  butterfly<2>(x);
  butterfly<4>(x);
  butterfly<8>(x);
  butterfly<16>(x);
  encode(x, kBlock, to, [=](vf v) { return v / scale; });
}

}  // namespace

void fused_hadamard_quant_fp8(Tensor input, double scale, Tensor output) {
  const char* op = "fused_hadamard_quant_fp8";
  Check{op, "input", input}.dtype<bf16>("bfloat16").contiguous();
  Check{op, "output", output}.same_shape(input).dtype<e4m3>("float8_e4m3fn").contiguous();
  if (input.numel() % kBlock != 0)
    fail("ValueError", op, ".input: want a multiple of 32 elements, have ", shape_text(input));
  if (!std::isfinite(scale) || scale == 0)
    fail("ValueError", op, ".scale: want a finite number other than 0, have ", scale);
  const bf16* from = input.data<bf16>();
  uint8_t* to = output.data<uint8_t>();
  const float divisor = static_cast<float>(scale);
  parallel_for(input.numel() / kBlock, 128, [=](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      quantise_block(from + b * kBlock, divisor, to + b * kBlock);
  });
}
FD_EXPORT(fused_hadamard_quant_fp8)

}  // namespace fd

#include "fd/check.h"
#include "fd/fp8.h"
#include "fd/parallel.h"

namespace fd {
namespace {

constexpr int64_t kGroup = 128;
constexpr float kLargest = 448.0f, kFloor = 1e-10f;

// Largest magnitude of n elements, NaN counting as nothing.
template <typename T>
float largest(const T* x, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float size = as_float(as_bits(to_float(x[i])) & 0x7fffffffu);
    most = size > most ? size : most;
  }
  return most;
}

// The biased exponent of the smallest power of two that is not below x.
uint32_t exponent_above(float x) {
  const uint32_t bits = as_bits(x);
  return (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1 : 0);
}

// Codes of n elements, scaled.
template <typename T, typename F>
void encode(const T* x, int64_t n, uint8_t* to, F&& scaled) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int left = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    const vf lanes = left == kLanes ? load16(x + i) : load_tail(x + i, left);
    store_codes(to + i, e4m3_codes(scaled(lanes)), left);
  }
}

// One group: its codes and its scale, or the scale's exponent.
template <typename T>
void quantise_group(const T* x, int64_t n, bool power, uint8_t* to, float* scale,
                    uint8_t* exponent) {
  const float most = largest(x, n), amax = most > kFloor ? most : kFloor, plain = amax / kLargest;
  if (!power) {
    *scale = plain;
    return encode(x, n, to, [=](vf v) { return v * kLargest / amax; });
  }
  const uint32_t e = exponent_above(plain > kFloor ? plain : kFloor);
  *exponent = static_cast<uint8_t>(e);
  encode(x, n, to, [=](vf v) { return v / as_float(e << 23); });
}

}  // namespace

void per_token_quant(Tensor input, int64_t block_size, bool use_ue8m0, Tensor output,
                     Tensor output_scale) {
  const char* op = "per_token_quant";
  Check{op, "input", input}.rank(2).contiguous();
  if (block_size != kGroup)
    fail("ValueError", op, ".block_size: want ", kGroup, ", have ", block_size);
  if (!is<bf16>(input) && !is<f16>(input))
    fail("TypeError", op, ".input: want bfloat16 or float16, have ", dtype_text(input));
  const int64_t rows = input.size(0), columns = input.size(1);
  const int64_t groups = (columns + kGroup - 1) / kGroup, words = (groups + 3) / 4;
  Check{op, "output", output}.same_shape(input).contiguous();
  if (output.dtype().code != kDLFloat8_e4m3fn)
    fail("TypeError", op, ".output: want float8_e4m3fn, have ", dtype_text(output));
  Check{op, "output_scale", output_scale}.rank(2).dim(0, rows).contiguous();
  Check{op, "output_scale", output_scale}.dim(1, use_ue8m0 ? words : groups);
  if (use_ue8m0) Check{op, "output_scale", output_scale}.dtype<int32_t>("int32");
  if (!use_ue8m0) Check{op, "output_scale", output_scale}.dtype<float>("float32");
  dispatch_float(op, "input", input, [&](auto tag) {
    const auto* from = input.data<decltype(tag)>();
    uint8_t *to = output.data<uint8_t>(), *bytes = output_scale.data<uint8_t>();
    float* scales = output_scale.data<float>();
    parallel_for(rows, 1 + 16384 / (columns + 1), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        if (use_ue8m0) std::memset(bytes + r * words * 4, 0, static_cast<size_t>(words) * 4);
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t at = r * columns + g * kGroup;
          const int64_t n = columns - g * kGroup < kGroup ? columns - g * kGroup : kGroup;
          quantise_group(from + at, n, use_ue8m0, to + at, scales + r * groups + g,
                         bytes + r * words * 4 + g);
        }
      }
    });
  });
}
FD_EXPORT(per_token_quant)

}  // namespace fd

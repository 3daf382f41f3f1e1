// Rows of 16-bit floats to float8 with a scale per group of 128 columns: per_token_quant's
// arithmetic.
#pragma once
#include "fd/check.h"
#include "fd/fp8.h"
#include "fd/parallel.h"

namespace fd {

constexpr int64_t kFp8Group = 128;
constexpr float kFp8Floor = 1e-10f;

// Largest magnitude of n elements, NaN counting as nothing.
template <typename T>
float largest(const T* x, int64_t n) {
  vf top{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const int left = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    const vf lanes = left == kLanes ? load16(x + i) : load_tail(x + i, left);
    const vf size = reinterpret_cast<vf>(reinterpret_cast<vu>(lanes) & 0x7fffffffu);
    top = size > top ? size : top;
  }
  return max16(top);
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

// The biased exponent of the smallest power of two that is not below x.
inline uint32_t exponent_above(float x) {
  const uint32_t bits = as_bits(x);
  return (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1 : 0);
}

// Scales [rows, groups] float32 or, four exponents to a word, int32; strides in elements.
struct GroupScales {
  char* data;
  int64_t row, column;
  bool power;

  void put(int64_t r, int64_t g, float scale, uint32_t exponent) const {
    const int64_t at = 4 * (r * row + (power ? g / 4 : g) * column);
    if (power) data[at + g % 4] = static_cast<char>(exponent);
    if (!power) std::memcpy(data + at, &scale, 4);
  }
  void clear(int64_t r, int64_t columns) const {
    for (int64_t c = 0; c < columns; ++c) std::memset(data + 4 * (r * row + c * column), 0, 4);
  }
};

template <typename T>
void quantise_fp8_row(const T* x, int64_t columns, uint8_t* to, const GroupScales& scales,
                      int64_t row) {
  for (int64_t g = 0; g * kFp8Group < columns; ++g) {
    const int64_t at = g * kFp8Group, n = columns - at < kFp8Group ? columns - at : kFp8Group;
    const float most = largest(x + at, n), amax = most > kFp8Floor ? most : kFp8Floor;
    const float plain = amax / kE4m3Largest;
    const uint32_t e = exponent_above(plain > kFp8Floor ? plain : kFp8Floor);
    scales.put(row, g, plain, e);
    if (scales.power)
      encode(x + at, n, to + at, [=](vf v) { return v / as_float(e << 23); });
    else
      encode(x + at, n, to + at, [=](vf v) { return v * kE4m3Largest / amax; });
  }
}

// What the three quantisers check alike: the block, the input's type, codes like the input, and
// scales [..., columns] of the right type. Returns the number of columns of the scales.
inline int64_t check_group_quant(const char* op, Tensor input, int64_t block_size, bool power,
                                 Tensor output, Tensor scale) {
  if (block_size != kFp8Group)
    fail("ValueError", op, ".block_size: want ", kFp8Group, ", have ", block_size);
  if (!is<bf16>(input) && !is<f16>(input))
    fail("TypeError", op, ".input: want bfloat16 or float16, have ", dtype_text(input));
  Check{op, "input", input}.contiguous();
  Check{op, "output", output}.same_shape(input).dtype<e4m3>("float8_e4m3fn").contiguous();
  if (power) Check{op, "output_scale", scale}.dtype<int32_t>("int32");
  if (!power) Check{op, "output_scale", scale}.dtype<float>("float32");
  const int64_t groups = (input.size(-1) + kFp8Group - 1) / kFp8Group;
  return power ? (groups + 3) / 4 : groups;
}

template <typename F>
void dispatch_half(const Tensor& t, F&& f) {
  if (is<bf16>(t)) return f(bf16{});
  f(f16{});
}

}  // namespace fd

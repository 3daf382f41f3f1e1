#include "fd/token_quant.h"

namespace fd {
namespace {

// One row's codes; returns its scale.
template <typename T>
float quantise_row(const T* x, int64_t depth, float bound, uint8_t* to) {
  const float most = largest(x, depth);
  const float scale = (bound > 0 && most > bound ? bound : most) / kE4m3Largest;
  const float divisor = scale == 0 ? 1.0f : scale;
  encode(x, depth, to, [=](vf v) { return v / divisor; });
  return scale;
}

int64_t rows_of(Tensor t) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.ndim(); ++i) rows *= t.size(i);
  return rows;
}

}  // namespace

void dynamic_per_token_scaled_fp8_quant(Tensor out, Tensor input, Tensor scales, double scale_ub) {
  const char* op = "dynamic_per_token_scaled_fp8_quant";
  if (input.ndim() == 0) fail("ValueError", op, ".input: want at least one dimension, have none");
  Check{op, "input", input}.contiguous();
  const int64_t rows = rows_of(input), depth = input.size(-1);
  Check{op, "out", out}.rank(input.ndim()).dim(-1, depth).dtype<e4m3>("float8_e4m3fn").contiguous();
  if (rows_of(out) < rows)
    fail("ValueError", op, ".out: want at least ", rows, " rows, have ", shape_text(out));
  Check{op, "scales", scales}.dtype<float>("float32").contiguous();
  const int64_t slots = Check{op, "scales", scales}.slot_count(), all = rows_of(out);
  if (slots < rows) fail("ValueError", op, ".scales: want at least ", rows, ", have ", slots);
  const float bound = static_cast<float>(scale_ub);
  dispatch_float(op, "input", input, [&](auto tag) {
    const auto* from = input.data<decltype(tag)>();
    uint8_t* to = out.data<uint8_t>();
    float* multipliers = scales.data<float>();
    parallel_for(rows, 1 + 16384 / (depth + 1), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        multipliers[r] = quantise_row(from + r * depth, depth, bound, to + r * depth);
    });
    std::memset(to + rows * depth, 0, static_cast<size_t>((all - rows) * depth));
    std::memset(multipliers + rows, 0, static_cast<size_t>(slots - rows) * sizeof(float));
  });
}
FD_EXPORT(dynamic_per_token_scaled_fp8_quant)

}  // namespace fd

// A dense layer over weight_quantize's codes. The engine's own methods use panels instead
// (linear_int8.cc); this one serves callers that hold weights in that order.
#include <string>

#include "fd/parallel.h"
#include "fd/scratch.h"
#include "fd/weight_layout.h"

namespace fd {
namespace {

constexpr int64_t kBlock = 512;  // steps of k dequantised at a time

// sums[rows] of column n: blocks of k in order, so that a row's sum does not depend on the others.
template <typename T>
void column_sums(const WeightLayout& plan, const T* x, int64_t rows, const uint8_t* codes,
                 const T* scales, int64_t n, float* sums) {
  alignas(64) float w[kBlock];
  for (int64_t r = 0; r < rows; ++r) sums[r] = 0;
  for (int64_t k0 = 0; k0 < plan.depth; k0 += kBlock) {
    const int64_t kc = plan.depth - k0 < kBlock ? plan.depth - k0 : kBlock;
    for (int64_t k = 0; k < kc; ++k)
      w[k] = to_float(from_float<T>(static_cast<float>(plan.get(codes, k0 + k, n)) *
                                    to_float(scales[plan.scale(k0 + k, n)])));
    for (int64_t r = 0; r < rows; ++r) {
      vf sum{};
      for (int64_t k = 0; k < kc; k += kLanes)  // K is a multiple of 64
        sum += load16(x + r * plan.depth + k0 + k) * load16(w + k);
      sums[r] += sum16(sum);
    }
  }
}

void check_linear(const char* op, const WeightLayout& plan, Tensor x, Tensor weight, Tensor scale,
                  OptTensor bias, Tensor out, bool grouped) {
  plan.check(op, "weight", weight, "weight_scale", scale, grouped);
  Check{op, "weight_scale", scale}.same_dtype(x);
  Check{op, "out", out}.rank(x.ndim()).dim(-1, plan.columns).same_dtype(x).contiguous();
  for (int i = 0; i + 1 < x.ndim(); ++i) Check{op, "out", out}.dim(i, x.size(i));
  if (bias) Check{op, "bias", bias}.rank(1).dim(0, plan.columns).same_dtype(x).contiguous();
}

}  // namespace

void weight_only_linear(Tensor x, Tensor weight, OptTensor bias, OptTensor weight_scale,
                        std::string_view weight_dtype, int64_t arch, int64_t group_size,
                        Tensor out) {
  const char* op = "weight_only_linear";
  if (!weight_scale)
    fail("ValueError", op, ".weight_scale: want the scales of weight_quantize, have None");
  if (x.ndim() == 0) fail("ValueError", op, ".x: want at least one dimension, have none");
  Check{op, "x", x}.contiguous();
  Check{op, "weight", weight}.rank(2);
  int64_t rows = 1;
  for (int i = 0; i + 1 < x.ndim(); ++i) rows *= x.size(i);
  const int64_t depth = x.size(-1);
  const std::string algo = "weight_only_" + std::string(weight_dtype);
  const int64_t columns = weight.size(0) * (weight_dtype == "int4" ? 2 : 1);
  const WeightLayout plan = weight_layout(op, algo, arch, group_size, depth, columns);
  check_linear(op, plan, x, weight, weight_scale, bias, out, group_size > 0);
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T *from = x.data<T>(), *scales = weight_scale.data<T>();
    const T* shift = bias ? bias.data<T>() : nullptr;
    const uint8_t* codes = weight.data<uint8_t>();
    T* to = out.data<T>();
    float* sums = scratch<0>(columns * rows);
    parallel_for(columns, 1 + (1 << 15) / (depth * (rows + 1) + 1),
                 [=](int64_t begin, int64_t end) {
                   for (int64_t n = begin; n < end; ++n) {
                     float* sum = sums + n * rows;
                     column_sums(plan, from, rows, codes, scales, n, sum);
                     const float add = shift != nullptr ? to_float(shift[n]) : 0.0f;
                     for (int64_t r = 0; r < rows; ++r)
                       to[r * columns + n] = from_float<T>(sum[r] + add);
                   }
                 });
  });
}
FD_EXPORT(weight_only_linear)

}  // namespace fd

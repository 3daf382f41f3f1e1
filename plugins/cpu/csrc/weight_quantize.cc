#include <algorithm>
#include <cmath>

#include "fd/parallel.h"
#include "fd/weight_layout.h"

namespace fd {
namespace {

// Nearest, ties away from zero; 0 where the scale is none.
int code_of(float x, float scale, int limit) {
  if (!std::isfinite(scale) || scale == 0 || std::isnan(x)) return 0;
  const float q = std::round(x / scale);
  return static_cast<int>(std::fmin(std::fmax(q, -static_cast<float>(limit)), limit));
}

// The codes and the scale of column n in rows [k0, k1).
template <typename T>
T quantise_part(const WeightLayout& plan, const T* x, int64_t n, int64_t k0, int64_t k1,
                uint8_t* out) {
  uint32_t most = 0;  // magnitudes compare like their bits, NaN above all
  for (int64_t k = k0; k < k1; ++k) {
    const uint32_t bits = as_bits(to_float(x[k * plan.columns + n])) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  const T scale = from_float<T>(as_float(most) / static_cast<float>(plan.limit));
  for (int64_t k = k0; k < k1; ++k)
    plan.put(out, k, n, code_of(to_float(x[k * plan.columns + n]), to_float(scale), plan.limit));
  return scale;
}

}  // namespace

void weight_quantize(Tensor x, std::string_view algo, int64_t arch, int64_t group_size, Tensor out,
                     Tensor scale) {
  const char* op = "weight_quantize";
  Check{op, "x", x}.rank(2).contiguous();
  const WeightLayout plan = weight_layout(op, algo, arch, group_size, x.size(0), x.size(1));
  plan.check(op, "out", out, "scale", scale, group_size > 0);
  Check{op, "scale", scale}.same_dtype(x);
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* from = x.data<T>();
    uint8_t* to = out.data<uint8_t>();
    T* scales = scale.data<T>();
    if (plan.depth == 0)
      for (int64_t n = 0; n < scale.numel(); ++n) scales[n] = from_float<T>(0);
    parallel_for(plan.columns, 4, [=](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        for (int64_t k = 0; k < plan.depth; k += plan.group)
          scales[plan.scale(k, n)] =
              quantise_part(plan, from, n, k, std::min(k + plan.group, plan.depth), to);
    });
  });
}
FD_EXPORT(weight_quantize)

}  // namespace fd

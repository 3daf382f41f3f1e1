#include "fd/parallel.h"
#include "fd/weight_layout.h"

namespace fd {

void weight_dequantize(Tensor x, Tensor scale, std::string_view algo,
                       std::string_view /*out_dtype*/, int64_t group_size, Tensor out) {
  const char* op = "weight_dequantize";
  Check{op, "x", x}.rank(2);
  Check{op, "scale", scale}.rank(group_size > 0 ? 2 : 1);
  const WeightLayout plan = weight_layout(op, algo, 0, group_size, x.size(1), scale.size(-1));
  plan.check(op, "x", x, "scale", scale, group_size > 0);
  Check{op, "out", out}.rank(2).dim(0, plan.depth).dim(1, plan.columns).contiguous();
  Check{op, "out", out}.same_dtype(scale);
  dispatch_float(op, "scale", scale, [&](auto tag) {
    using T = decltype(tag);
    const uint8_t* codes = x.data<uint8_t>();
    const T* scales = scale.data<T>();
    T* to = out.data<T>();
    parallel_for(plan.depth, 4, [=](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        for (int64_t n = 0; n < plan.columns; ++n)
          to[k * plan.columns + n] = from_float<T>(static_cast<float>(plan.get(codes, k, n)) *
                                                   to_float(scales[plan.scale(k, n)]));
    });
  });
}
FD_EXPORT(weight_dequantize)

}  // namespace fd

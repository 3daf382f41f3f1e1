// linear_fused(x, weight, bias, norm, eps, gated, add, out): rms_norm, linear_fixed_weight, swiglu
// and an addition as one kernel over plain weights.
#include "fd/skinny_ends.cuh"

#ifndef __CUDACC_RTC__
#include "fd/fused_linear.h"

namespace fd {

void linear_fused(Tensor x, Tensor weight, OptTensor bias, OptTensor norm, double eps, bool gated,
                  bool add, Tensor out) {
  const char* op = "linear_fused";
  const FusedEnds ends{norm, eps, gated, add};
  const int64_t columns = check_fused(op, x, ends, out);
  Check{op, "weight", weight}.rank(2).dim(0, columns).dim(1, x.size(1)).same_dtype(x);
  Check{op, "weight", weight}.inner_contiguous();
  if (!in_units(weight))
    fail("ValueError", op, ".weight: want rows at 16-byte boundaries, have ", shape_text(weight));
  const LinearSink sink = linear_sink(op, x, bias, out, columns);
  same_device(op, x, {weight, bias, norm, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_streams(on);
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    using Weights = PlainWeights<T, kPlainWindow>;
    fused_launch<Weights, T>(on, Weights{weight.data<T>(), weight.stride(0), x.size(1), columns}, x,
                             ends, sink);
  };
  is<bf16>(x) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(linear_fused)

}  // namespace fd
#endif

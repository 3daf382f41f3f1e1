// linear_int4_zero_fused(x, codes, steps, bias, norm, eps, gated, add, out): rms_norm,
// linear_int4_zero, swiglu and an addition as one kernel.
#include "fd/packed_zero.cuh"
#include "fd/skinny_ends.cuh"

#ifndef __CUDACC_RTC__
#include "fd/fused_linear.h"
#include "fd/packed_checks.h"

namespace fd {

void linear_int4_zero_fused(Tensor x, Tensor codes, Tensor steps, OptTensor bias, OptTensor norm,
                            double eps, bool gated, bool add, Tensor out) {
  const char* op = "linear_int4_zero_fused";
  const FusedEnds ends{norm, eps, gated, add};
  const int64_t columns = check_fused(op, x, ends, out);
  const int64_t group = check_int4_zero(op, codes, steps, columns, x.size(1));
  const LinearSink sink = linear_sink(op, x, bias, out, columns);
  same_device(op, x, {codes, steps, bias, norm, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_streams(on);
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    with_int4_zero_weights<T>(group, codes, steps, columns, [&](const auto& weights) {
      fused_launch<std::decay_t<decltype(weights)>, T>(on, weights, x, ends, sink);
    });
  };
  is<bf16>(x) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(linear_int4_zero_fused)

}  // namespace fd
#endif

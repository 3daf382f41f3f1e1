#include "fd/overlap.cuh"
#include "fd/weight_layout.cuh"

namespace fd {

// An element a thread: a weight is dequantised once, while it is loaded.
template <typename T>
__global__ void weight_dequantize_codes(const uint8_t* codes, const T* scales, WeightLayout plan,
                                        T* out) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= plan.depth * plan.columns) return;
  const int64_t k = i / plan.columns, n = i % plan.columns;
  const float code = static_cast<float>(plan.get(codes, k, n));
  out[i] = from_float<T>(code * to_float(scales[plan.scale(k, n)]));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/weight_layout.h"

namespace fd {

void weight_dequantize(Tensor x, Tensor scale, std::string_view algo,
                       std::string_view /*out_dtype*/, int64_t group_size, Tensor out) {
  const char* op = "weight_dequantize";
  Check{op, "x", x}.rank(2);
  Check{op, "scale", scale}.rank(group_size > 0 ? 2 : 1);
  const WeightLayout plan = weight_layout(op, algo, 0, group_size, x.size(1), scale.size(-1));
  check_codes(plan, op, "x", x, "scale", scale, group_size > 0);
  Check{op, "out", out}.rank(2).dim(0, plan.depth).dim(1, plan.columns).contiguous();
  Check{op, "out", out}.same_dtype(scale);
  same_device(op, x, {scale, out});
  const Launch on = launch_on(op, x);
  dispatch_float(op, "scale", scale, [&](auto tag) {
    using T = decltype(tag);
    run_overlapped(on, weight_dequantize_codes<T>, dim3((plan.depth * plan.columns + 255) / 256),
                   dim3(256), 0, static_cast<const uint8_t*>(x.data<uint8_t>()),
                   static_cast<const T*>(scale.data<T>()), plan, out.data<T>());
  });
}
FD_EXPORT(weight_dequantize)

}  // namespace fd
#endif

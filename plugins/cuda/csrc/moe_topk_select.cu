#include "fd/moe_route.cuh"
#include "fd/overlap.cuh"

namespace fd {

__global__ void __launch_bounds__(kRouteWarps* kWarp)
    moe_topk_select_tokens(MoeRouter router, const float* logits, int64_t tokens, int64_t* ids,
                           float* weights) {
  wait_for_inputs();
  const int64_t t = int64_t{blockIdx.x} * kRouteWarps + threadIdx.x / kWarp;
  if (t < tokens)
    route_token(router, logits + t * router.experts, ids + t * router.k, weights + t * router.k);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/moe_route.h"

namespace fd {

// The flag `fused` picks another kernel elsewhere; the result is the same.
void moe_topk_select(Tensor gating_logits, OptTensor bias, int64_t moe_topk, bool apply_norm_weight,
                     bool /*enable_softmax_top_k_fused*/, Tensor topk_ids, Tensor topk_weights) {
  const char* op = "moe_topk_select";
  if (gating_logits.ndim() != 3) Check{op, "gating_logits", gating_logits}.rank(2);
  Check{op, "gating_logits", gating_logits}.dtype<float>("float32").contiguous();
  const int64_t experts = gating_logits.size(-1), rows = leading_rows(gating_logits);
  check_top_k(op, moe_topk, experts);
  const float* shift = route_bias(op, "bias", bias, experts);
  Check{op, "topk_ids", topk_ids}.rank(2).dim(0, rows).dim(1, moe_topk).contiguous();
  Check{op, "topk_ids", topk_ids}.dtype<int64_t>("int64");
  Check{op, "topk_weights", topk_weights}.same_shape(topk_ids).dtype<float>("float32").contiguous();
  same_device(op, gating_logits, {bias, topk_ids, topk_weights});
  const MoeRouter router{shift, static_cast<int>(experts), static_cast<int>(moe_topk), false,
                         false, apply_norm_weight};
  run_overlapped(launch_on(op, gating_logits), moe_topk_select_tokens, route_grid(rows),
                 dim3(kRouteWarps * kWarp), 0, router,
                 static_cast<const float*>(gating_logits.data<float>()), rows,
                 topk_ids.data<int64_t>(), topk_weights.data<float>());
}
FD_EXPORT(moe_topk_select)

}  // namespace fd
#endif

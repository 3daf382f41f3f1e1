#include "fd/moe_route.h"

namespace fd {

// The flag `fused` picks another kernel elsewhere; the result is the same.
void moe_topk_select(Tensor gating_logits, OptTensor bias, int64_t moe_topk, bool apply_norm_weight,
                     bool /*enable_softmax_top_k_fused*/, Tensor topk_ids, Tensor topk_weights) {
  const char* op = "moe_topk_select";
  if (gating_logits.ndim() != 3) Check{op, "gating_logits", gating_logits}.rank(2);
  Check{op, "gating_logits", gating_logits}.dtype<float>("float32").contiguous();
  const int64_t experts = gating_logits.size(-1), rows = moe::leading_rows(gating_logits);
  moe::check_top_k(op, moe_topk, experts);
  const float* b = moe::bias_of(op, "bias", bias, experts);
  Check{op, "topk_ids", topk_ids}.rank(2).dim(0, rows).dim(1, moe_topk).contiguous();
  Check{op, "topk_ids", topk_ids}.dtype<int64_t>("int64");
  Check{op, "topk_weights", topk_weights}.same_shape(topk_ids).dtype<float>("float32").contiguous();
  const moe::Router router{b, experts, static_cast<int>(moe_topk), false, false, apply_norm_weight};
  router.rows(gating_logits.data<float>(), rows, topk_ids.data<int64_t>(),
              topk_weights.data<float>());
}
FD_EXPORT(moe_topk_select)

}  // namespace fd

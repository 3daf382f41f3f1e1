#include "fd/moe_route.h"

namespace fd {
namespace {

const char* const kOp = "moe_expert_dispatch";

// Stable counting sort of the slots by expert. `ends` [experts] serves as the cursor and ends up as
// the inclusive prefix sum.
void sort_slots(const int32_t* experts_of, int64_t tokens, int64_t k, int64_t experts,
                int64_t* ends, int32_t* row_of, int32_t* expert_of_row) {
  const int64_t slots = tokens * k;
  std::fill_n(ends, experts, int64_t{0});
  for (int64_t i = 0; i < slots; ++i) ++ends[experts_of[i]];
  for (int64_t e = 1; e < experts; ++e) ends[e] += ends[e - 1];
  for (int64_t i = slots - 1; i >= 0; --i) {
    const int64_t row = --ends[experts_of[i]];
    row_of[i % k * tokens + i / k] = static_cast<int32_t>(row);
    expert_of_row[row] = experts_of[i];
  }
  for (int64_t e = 0; e + 1 < experts; ++e) ends[e] = ends[e + 1];
  ends[experts - 1] = slots;
}

void copy_rows(const char* from, int64_t bytes, int64_t tokens, int64_t k, const int32_t* row_of,
               char* to) {
  parallel_for(tokens, 1 + 65536 / (bytes * k + 1), [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t j = 0; j < k; ++j)
        std::memcpy(to + row_of[j * tokens + t] * bytes, from + t * bytes,
                    static_cast<size_t>(bytes));
  });
}

void check_mode(OptTensor scale, std::string_view quant) {
  if (!quant.empty() && quant != "none")
    fail("ValueError", kOp, ".moe_quant_type: want \"\" (rows are copied), have \"", quant,
         "\": this kernel does not quantise");
  if (scale)
    fail("ValueError", kOp,
         ".w4a8_in_scale: want None, because rows are copied without quantisation");
}

}  // namespace

void moe_expert_dispatch(Tensor input, Tensor gating_output, OptTensor gating_correction_bias,
                         OptTensor w4a8_in_scale, int64_t moe_topk, bool group_moe,
                         std::string_view moe_quant_type, bool topk_only_mode, Tensor permute_input,
                         Tensor tokens_expert_prefix_sum, Tensor permute_indices_per_token,
                         Tensor topk_weight, Tensor topk_idx, Tensor expert_idx_per_token) {
  check_mode(w4a8_in_scale, moe_quant_type);
  if (input.ndim() != 3) Check{kOp, "input", input}.rank(2);
  Check{kOp, "input", input}.contiguous();
  dispatch_float(kOp, "input", input, [](auto) {});
  const int64_t tokens = moe::leading_rows(input), hidden = input.size(-1), k = moe_topk;
  Check{kOp, "gating_output", gating_output}.rank(2).dim(0, tokens).contiguous();
  Check{kOp, "gating_output", gating_output}.dtype<float>("float32");
  const int64_t experts = gating_output.size(1), slots = tokens * k;
  moe::check_top_k(kOp, k, experts);
  const bool grouped = group_moe && !topk_only_mode;
  if (grouped && experts % k != 0)
    fail("ValueError", kOp, ".moe_topk: want a divisor of ", experts,
         " experts with group_moe, have ", k);
  const float* bias = moe::bias_of(kOp, "gating_correction_bias", gating_correction_bias, experts);
  Check{kOp, "permute_input", permute_input}.rank(2).dim(0, slots).dim(1, hidden).contiguous();
  Check{kOp, "permute_input", permute_input}.same_dtype(input);
  const Tensor ends = tokens_expert_prefix_sum, row_of = permute_indices_per_token;
  Check{kOp, "tokens_expert_prefix_sum", ends}.dtype<int64_t>("int64").rank(1).dim(0, experts);
  Check{kOp, "permute_indices_per_token", row_of}.dtype<int32_t>("int32").rank(2).contiguous();
  Check{kOp, "permute_indices_per_token", row_of}.dim(0, k).dim(1, tokens);
  Check{kOp, "topk_weight", topk_weight}.dtype<float>("float32").rank(2).contiguous();
  Check{kOp, "topk_weight", topk_weight}.dim(0, tokens).dim(1, k);
  Check{kOp, "topk_idx", topk_idx}.dtype<int32_t>("int32").same_shape(topk_weight).contiguous();
  Check{kOp, "expert_idx_per_token", expert_idx_per_token}.dtype<int32_t>("int32").rank(1);
  Check{kOp, "expert_idx_per_token", expert_idx_per_token}.dim(0, slots);

  int32_t* ids = topk_idx.data<int32_t>();
  const moe::Router router{bias, experts, static_cast<int>(k), topk_only_mode, grouped, false};
  router.rows(gating_output.data<float>(), tokens, ids, topk_weight.data<float>());
  sort_slots(ids, tokens, k, experts, ends.data<int64_t>(), row_of.data<int32_t>(),
             expert_idx_per_token.data<int32_t>());
  copy_rows(input.data<char>(), hidden * input.dtype().bits / 8, tokens, k, row_of.data<int32_t>(),
            permute_input.data<char>());
}
FD_EXPORT(moe_expert_dispatch)

}  // namespace fd

#include <limits>

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

struct Outputs {
  Tensor rows, ends, row_of, weight, expert_of, expert_of_row;

  void check(const Tensor& input, int64_t tokens, int64_t experts, int64_t k) const {
    const int64_t slots = tokens * k;
    if (slots > std::numeric_limits<int32_t>::max())
      fail("ValueError", kOp, ".input: want fewer than 2^31 rows after routing, have ", slots);
    Check{kOp, "permute_input", rows}.rank(2).dim(0, slots).dim(1, input.size(-1)).contiguous();
    Check{kOp, "permute_input", rows}.same_dtype(input);
    Check{kOp, "tokens_expert_prefix_sum", ends}.dtype<int64_t>("int64").rank(1).contiguous();
    Check{kOp, "tokens_expert_prefix_sum", ends}.dim(0, experts);
    Check{kOp, "permute_indices_per_token", row_of}.dtype<int32_t>("int32").rank(2).contiguous();
    Check{kOp, "permute_indices_per_token", row_of}.dim(0, k).dim(1, tokens);
    Check{kOp, "topk_weight", weight}.dtype<float>("float32").rank(2).contiguous();
    Check{kOp, "topk_weight", weight}.dim(0, tokens).dim(1, k);
    Check{kOp, "topk_idx", expert_of}.dtype<int32_t>("int32").same_shape(weight).contiguous();
    Check{kOp, "expert_idx_per_token", expert_of_row}.dtype<int32_t>("int32").rank(1).contiguous();
    Check{kOp, "expert_idx_per_token", expert_of_row}.dim(0, slots);
  }

  void fill(const Tensor& input, const float* scores, int64_t tokens,
            const moe::Router& router) const {
    int32_t* experts = expert_of.data<int32_t>();
    router.rows(scores, tokens, experts, weight.data<float>());
    sort_slots(experts, tokens, router.k, router.experts, ends.data<int64_t>(),
               row_of.data<int32_t>(), expert_of_row.data<int32_t>());
    copy_rows(input.data<char>(), input.size(-1) * input.dtype().bits / 8, tokens, router.k,
              row_of.data<int32_t>(), rows.data<char>());
  }
};

void check_inputs(const Tensor& input, const Tensor& scores, int64_t k, bool grouped) {
  if (input.ndim() != 3) Check{kOp, "input", input}.rank(2);
  Check{kOp, "input", input}.contiguous();
  dispatch_float(kOp, "input", input, [](auto) {});
  Check{kOp, "gating_output", scores}.rank(2).dim(0, moe::leading_rows(input)).contiguous();
  Check{kOp, "gating_output", scores}.dtype<float>("float32");
  moe::check_top_k(kOp, k, scores.size(1));
  if (grouped && scores.size(1) % k != 0)
    fail("ValueError", kOp, ".moe_topk: want a divisor of ", scores.size(1),
         " experts with group_moe, have ", k);
}

}  // namespace

void moe_expert_dispatch(Tensor input, Tensor gating_output, OptTensor gating_correction_bias,
                         OptTensor w4a8_in_scale, int64_t moe_topk, bool group_moe,
                         std::string_view moe_quant_type, bool topk_only_mode, Tensor permute_input,
                         Tensor tokens_expert_prefix_sum, Tensor permute_indices_per_token,
                         Tensor topk_weight, Tensor topk_idx, Tensor expert_idx_per_token) {
  const bool grouped = group_moe && !topk_only_mode;
  check_mode(w4a8_in_scale, moe_quant_type);
  check_inputs(input, gating_output, moe_topk, grouped);
  const int64_t tokens = gating_output.size(0), experts = gating_output.size(1);
  const float* bias = moe::bias_of(kOp, "gating_correction_bias", gating_correction_bias, experts);
  const Outputs out{permute_input, tokens_expert_prefix_sum, permute_indices_per_token, topk_weight,
                    topk_idx,      expert_idx_per_token};
  out.check(input, tokens, experts, moe_topk);
  out.fill(input, gating_output.data<float>(), tokens,
           {bias, experts, static_cast<int>(moe_topk), topk_only_mode, grouped, false});
}
FD_EXPORT(moe_expert_dispatch)

}  // namespace fd

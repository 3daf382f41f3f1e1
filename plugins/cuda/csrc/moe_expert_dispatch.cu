#include "fd/moe_route.cuh"
#include "fd/slot_sort.cuh"

namespace fd {

__global__ void __launch_bounds__(kRouteWarps* kWarp)
    moe_expert_dispatch_route(MoeRouter router, const float* scores, int64_t tokens, int32_t* ids,
                              float* weights) {
  wait_for_inputs();
  const int64_t t = int64_t{blockIdx.x} * kRouteWarps + threadIdx.x / kWarp;
  if (t < tokens)
    route_token(router, scores + t * router.experts, ids + t * router.k, weights + t * router.k);
}

struct DispatchSink {
  int64_t* ends;            // [experts]
  int32_t *row_of, *owner;  // [k, tokens]; [rows]
  int64_t tokens, k;

  __device__ __forceinline__ void place(int64_t slot, int expert, int64_t row) const {
    row_of[slot % k * tokens + slot / k] = static_cast<int32_t>(row);
    owner[row] = expert;
  }
  __device__ void finish(const SlotSort& sort) const {
    for (int e = threadIdx.x; e < sort.groups; e += blockDim.x) ends[e] = sort.begins[e + 1];
  }
};

// One block a token; rows of `units` words.
template <typename Word>
__global__ void moe_expert_dispatch_copy(const Word* input, const int32_t* row_of, int64_t tokens,
                                         int k, int64_t units, Word* out) {
  wait_for_inputs();
  const int64_t t = blockIdx.x;
  for (int64_t i = threadIdx.x; i < units; i += blockDim.x) {
    const Word word = input[t * units + i];
    for (int j = 0; j < k; ++j) out[row_of[j * tokens + t] * units + i] = word;
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include <limits>

#include "fd/moe_route.h"
#include "fd/slot_sort.h"

namespace fd {

constexpr const char* kDispatchOp = "moe_expert_dispatch";

inline void dispatch_mode(OptTensor scale, std::string_view quant) {
  if (!quant.empty() && quant != "none")
    fail("ValueError", kDispatchOp, ".moe_quant_type: want \"\" (rows are copied), have \"", quant,
         "\": this kernel does not quantise");
  if (scale)
    fail("ValueError", kDispatchOp,
         ".w4a8_in_scale: want None, because rows are copied without quantisation");
}

inline void dispatch_inputs(const Tensor& input, const Tensor& scores, int64_t k, bool grouped) {
  if (input.ndim() != 3) Check{kDispatchOp, "input", input}.rank(2);
  Check{kDispatchOp, "input", input}.contiguous();
  dispatch_float(kDispatchOp, "input", input, [](auto) {});
  Check{kDispatchOp, "gating_output", scores}.rank(2).dim(0, leading_rows(input)).contiguous();
  Check{kDispatchOp, "gating_output", scores}.dtype<float>("float32");
  check_top_k(kDispatchOp, k, scores.size(1));
  if (grouped && scores.size(1) % k != 0)
    fail("ValueError", kDispatchOp, ".moe_topk: want a divisor of ", scores.size(1),
         " experts with group_moe, have ", k);
}

struct DispatchOutputs {
  Tensor rows, ends, row_of, weight, expert_of, owner;

  void check(const Tensor& input, int64_t tokens, int64_t experts, int64_t k) const {
    const char* op = kDispatchOp;
    const int64_t slots = tokens * k;
    if (slots > std::numeric_limits<int32_t>::max())
      fail("ValueError", op, ".input: want fewer than 2^31 rows after routing, have ", slots);
    Check{op, "permute_input", rows}.rank(2).dim(0, slots).dim(1, input.size(-1)).contiguous();
    Check{op, "permute_input", rows}.same_dtype(input);
    Check{op, "tokens_expert_prefix_sum", ends}.dtype<int64_t>("int64").rank(1).contiguous();
    Check{op, "tokens_expert_prefix_sum", ends}.dim(0, experts);
    Check{op, "permute_indices_per_token", row_of}.dtype<int32_t>("int32").rank(2).contiguous();
    Check{op, "permute_indices_per_token", row_of}.dim(0, k).dim(1, tokens);
    Check{op, "topk_weight", weight}.dtype<float>("float32").rank(2).contiguous();
    Check{op, "topk_weight", weight}.dim(0, tokens).dim(1, k);
    Check{op, "topk_idx", expert_of}.dtype<int32_t>("int32").same_shape(weight).contiguous();
    Check{op, "expert_idx_per_token", owner}.dtype<int32_t>("int32").rank(1).contiguous();
    Check{op, "expert_idx_per_token", owner}.dim(0, slots);
  }
};

template <typename Word>
void dispatch_copy(const Launch& on, const Tensor& input, const DispatchOutputs& out,
                   int64_t bytes) {
  const int64_t units = bytes / int64_t{sizeof(Word)}, tokens = out.weight.size(0);
  const int threads = units >= 256 ? 256 : units >= 128 ? 128 : 32;
  run_overlapped(on, moe_expert_dispatch_copy<Word>, dim3(static_cast<unsigned>(tokens)),
                 dim3(static_cast<unsigned>(threads)), 0,
                 static_cast<const Word*>(input.data<Word>()),
                 static_cast<const int32_t*>(out.row_of.data<int32_t>()), tokens,
                 static_cast<int>(out.weight.size(1)), units, out.rows.data<Word>());
}

inline void dispatch_rows(const Launch& on, const Tensor& input, const DispatchOutputs& out) {
  const int64_t bytes = input.size(-1) * input.dtype().bits / 8;
  if (bytes == 0) return;
  if (bytes % 16 == 0 && aligned16(input.data<char>()) && aligned16(out.rows.data<char>()))
    return dispatch_copy<uint4>(on, input, out, bytes);
  if (is<float>(input)) return dispatch_copy<uint32_t>(on, input, out, bytes);
  dispatch_copy<uint16_t>(on, input, out, bytes);
}

void moe_expert_dispatch(Tensor input, Tensor gating_output, OptTensor gating_correction_bias,
                         OptTensor w4a8_in_scale, int64_t moe_topk, bool group_moe,
                         std::string_view moe_quant_type, bool topk_only_mode, Tensor permute_input,
                         Tensor tokens_expert_prefix_sum, Tensor permute_indices_per_token,
                         Tensor topk_weight, Tensor topk_idx, Tensor expert_idx_per_token) {
  const bool grouped = group_moe && !topk_only_mode;
  dispatch_mode(w4a8_in_scale, moe_quant_type);
  dispatch_inputs(input, gating_output, moe_topk, grouped);
  const int64_t tokens = gating_output.size(0), experts = gating_output.size(1);
  const float* bias =
      route_bias(kDispatchOp, "gating_correction_bias", gating_correction_bias, experts);
  const DispatchOutputs out{
      permute_input, tokens_expert_prefix_sum, permute_indices_per_token, topk_weight,
      topk_idx,      expert_idx_per_token};
  out.check(input, tokens, experts, moe_topk);
  same_device(kDispatchOp, input,
              {gating_output, gating_correction_bias, permute_input, tokens_expert_prefix_sum,
               permute_indices_per_token, topk_weight, topk_idx, expert_idx_per_token});
  const Launch on = launch_on(kDispatchOp, input);
  const MoeRouter router{
      bias, static_cast<int>(experts), static_cast<int>(moe_topk), topk_only_mode, grouped, false};
  run_overlapped(on, moe_expert_dispatch_route, route_grid(tokens), dim3(kRouteWarps * kWarp), 0,
                 router, static_cast<const float*>(gating_output.data<float>()), tokens,
                 topk_idx.data<int32_t>(), topk_weight.data<float>());
  SlotSort sort{};
  sort.ids = topk_idx.data<char>(), sort.n = tokens * moe_topk;
  sort.groups = static_cast<int>(experts), sort.padding = 1;
  run_slot_sort(on, sort,
                DispatchSink{tokens_expert_prefix_sum.data<int64_t>(),
                             permute_indices_per_token.data<int32_t>(),
                             expert_idx_per_token.data<int32_t>(), tokens, moe_topk});
  dispatch_rows(on, input, out);
}
FD_EXPORT(moe_expert_dispatch)

}  // namespace fd
#endif

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

// Rows of `units` words.
template <typename Word>
struct DispatchCopy {
  const Word* input;
  const int32_t* row_of;
  int64_t tokens;
  int k;
  int64_t units;
  Word* out;

  // One unit of a token to all its rows; their numbers are loaded together.
  __device__ __forceinline__ void unit(int64_t t, int64_t i) const {
    constexpr int kAhead = 8;
    const Word word = input[t * units + i];
    for (int first = 0; first < k; first += kAhead) {
      int64_t rows[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        rows[j] = first + j < k ? row_of[(first + j) * tokens + t] : -1;
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (rows[j] >= 0) out[rows[j] * units + i] = word;
    }
  }
};

// One block a token.
template <typename Word>
__global__ void moe_expert_dispatch_copy(DispatchCopy<Word> copy) {
  wait_for_inputs();
  for (int64_t i = threadIdx.x; i < copy.units; i += blockDim.x) copy.unit(blockIdx.x, i);
}

// Few tokens: everything in one block, a warp routing each.
template <typename Word>
__global__ void __launch_bounds__(kSortThreads)
    moe_expert_dispatch_few(MoeRouter router, const float* scores, float* weights, int32_t* ids,
                            SlotSort sort, DispatchSink sink, DispatchCopy<Word> copy) {
  extern __shared__ int sort_memory[];
  wait_for_inputs();
  const int64_t warp = threadIdx.x / kWarp;
  if (warp < copy.tokens)
    route_token(router, scores + warp * router.experts, ids + warp * router.k,
                weights + warp * router.k);
  __syncthreads();
  sort_in_block(sort, sort_memory,
                [&](int64_t slot, int group, int64_t place) { sink.place(slot, group, place); });
  sink.finish(sort);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < copy.tokens * copy.units; i += kSortThreads)
    copy.unit(i / copy.units, i % copy.units);
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

// What a call runs with; the tensors are checked.
struct DispatchCall {
  MoeRouter router;
  const float* scores;
  Tensor input;
  DispatchOutputs out;

  int64_t tokens() const { return out.weight.size(0); }
  int64_t bytes() const { return input.size(-1) * input.dtype().bits / 8; }
  SlotSort sort() const {
    SlotSort sort{};
    sort.ids = out.expert_of.data<char>(), sort.n = tokens() * router.k;
    sort.groups = router.experts, sort.padding = 1;
    return sort;
  }
  DispatchSink sink() const {
    return {out.ends.data<int64_t>(), out.row_of.data<int32_t>(), out.owner.data<int32_t>(),
            tokens(), router.k};
  }
};

constexpr int64_t kFewTokens = 4;

template <typename Word>
void dispatch_few(const Launch& on, const DispatchCall& call, const DispatchCopy<Word>& copy) {
  size_t shared = 0;
  const SlotSort sort = plan_slot_sort(on, call.sort(), &shared);
  run_overlapped(on, moe_expert_dispatch_few<Word>, dim3(1), dim3(kSortThreads), shared,
                 call.router, call.scores, call.out.weight.data<float>(),
                 call.out.expert_of.data<int32_t>(), sort, call.sink(), copy);
}

template <typename Word>
void dispatch_run(const Launch& on, const DispatchCall& call) {
  const int64_t units = call.bytes() / int64_t{sizeof(Word)}, tokens = call.tokens();
  const DispatchCopy<Word> copy{
      call.input.data<Word>(),   call.out.row_of.data<int32_t>(), tokens, call.router.k, units,
      call.out.rows.data<Word>()};
  if (tokens <= kFewTokens && tokens * call.router.k <= kSortChunk)
    return dispatch_few(on, call, copy);
  run_overlapped(on, moe_expert_dispatch_route, route_grid(tokens), dim3(kRouteWarps * kWarp), 0,
                 call.router, call.scores, tokens, call.out.expert_of.data<int32_t>(),
                 call.out.weight.data<float>());
  run_slot_sort(on, call.sort(), call.sink());
  const int threads = units >= 256 ? 256 : units >= 128 ? 128 : 32;
  run_overlapped(on, moe_expert_dispatch_copy<Word>, dim3(static_cast<unsigned>(tokens)),
                 dim3(static_cast<unsigned>(threads)), 0, copy);
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
  const DispatchCall call{router, gating_output.data<float>(), input, out};
  if (call.bytes() % 16 == 0 && aligned16(input.data<char>()) &&
      aligned16(permute_input.data<char>()))
    return dispatch_run<uint4>(on, call);
  is<float>(input) ? dispatch_run<uint32_t>(on, call) : dispatch_run<uint16_t>(on, call);
}
FD_EXPORT(moe_expert_dispatch)

}  // namespace fd
#endif

// Each expert's gated feed-forward over its rows, in two grouped products: on tensor cores for
// 16-bit types from sm_80 on, in float32 arithmetic otherwise.
#include "fd/expert_plain.cuh"
#include "fd/expert_product.cuh"

#ifndef __CUDACC_RTC__
#include "fd/expert_sm90.h"
#include "fd/linear.h"
#include "fd/workspace.h"

namespace fd {

constexpr const char* kFfnOp = "moe_expert_ffn";

// What one call works on. `inner`: [rows, I] of the rows' type, between the products.
struct FfnCall {
  ExpertRows rows;
  Tensor x, up, down;
  OptTensor bias;
  Tensor out;

  int64_t hidden() const { return x.size(-1); }
  int64_t inner() const { return up.size(2) / 2; }
  void* memory(const Launch& on) const {
    const int64_t bytes = rows.rows * inner() * x.dtype().bits / 8;
    return workspace(on, Scratch::kMoeInner, static_cast<size_t>(bytes));
  }
};

template <typename T, typename Shape, bool Gated>
void ffn_product(const Launch& on, const ExpertProduct<T>& job) {
  constexpr int kColumns = Gated ? Shape::kWidth / 2 : Shape::kWidth;
  const int64_t width = Gated ? job.columns / 2 : job.columns;
  const dim3 grid(blocks_of(width, kColumns),
                  static_cast<unsigned>(expert_tiles(job.rows, Shape::kHeight)));
  allow_shared_once<moe_expert_product<T, Shape, Gated>>(on, Shape::kShared);
  run_overlapped(on, moe_expert_product<T, Shape, Gated>, grid, dim3(Shape::kThreads),
                 Shape::kShared, job);
}

template <typename T, typename Shape>
void ffn_tensor(const Launch& on, const FfnCall& call) {
  T* inner = static_cast<T*>(call.memory(on));
  const T* bias = call.bias ? call.bias.data<T>() : nullptr;
  ffn_product<T, Shape, true>(on, {call.rows, call.x.data<T>(), call.up.data<T>(), bias,
                                   call.hidden(), 2 * call.inner(), inner});
  ffn_product<T, Shape, false>(on, {call.rows, inner, call.down.data<T>(), nullptr, call.inner(),
                                    call.hidden(), call.out.data<T>()});
}

using FewRows = ProductShape<16, 64, 1, 4, 6>;
using SomeRows = ProductShape<64, 128, 2, 2, 4>;
using ManyRows = ProductShape<128, 128, 2, 2, 3>;

// From so many rows an expert on average sm_90a's own products are faster (measured on an H200).
constexpr int64_t kWideMean = 64;

inline bool ffn_wide(const Launch& on, const FfnCall& call, int64_t each) {
  if (wide_experts_fit == nullptr || each < kWideMean) return false;
  const void* bias = call.bias ? call.bias.data<void>() : nullptr;
  const WideCall wide{call.rows, call.x, call.up, call.down, bias, call.memory(on), call.out};
  if (!wide_experts_fit(on, wide)) return false;
  wide_experts(on, wide);
  return true;
}

// Tiles as high as an expert has rows on average.
template <typename T>
void ffn_shapes(const Launch& on, const FfnCall& call) {
  const int64_t each = call.rows.counts ? call.rows.capacity : call.rows.rows / call.rows.experts;
  if (ffn_wide(on, call, each)) return;
  if (each <= 8) return ffn_tensor<T, FewRows>(on, call);
  if (each <= 96) return ffn_tensor<T, SomeRows>(on, call);
  ffn_tensor<T, ManyRows>(on, call);
}

template <bool Gated>
void ffn_plain_product(const Launch& on, const PlainExperts& job) {
  const int64_t width = Gated ? job.columns / 2 : job.columns;
  const dim3 grid(blocks_of(width, kPlainWidth),
                  static_cast<unsigned>(expert_tiles(job.rows, kPlainHeight)));
  run(on, moe_expert_plain<Gated>, grid, dim3(256), 0, job);
}

void ffn_plain(const Launch& on, const FfnCall& call) {
  void* inner = call.memory(on);
  const int kind = kind_of(call.x), w_kind = kind_of(call.up);
  const void* bias = call.bias ? call.bias.data<char>() : nullptr;
  ffn_plain_product<true>(on, {call.rows, call.x.data<char>(), call.up.data<char>(), bias,
                               call.hidden(), 2 * call.inner(), inner, kind, w_kind});
  ffn_plain_product<false>(on, {call.rows, inner, call.down.data<char>(), nullptr, call.inner(),
                                call.hidden(), call.out.data<char>(), kind, w_kind});
}

inline void ffn_unquantised(std::string_view method, std::initializer_list<OptTensor> scales) {
  if (method != "none" && method != "w16a16")
    fail("ValueError", kFfnOp, ".quant_method: want \"none\" or \"w16a16\", have \"", method,
         "\": this kernel has 16-bit and float32 weights only");
  for (const OptTensor& scale : scales)
    if (scale) fail("ValueError", kFfnOp, ": want no scales with quant_method \"", method, "\"");
}

inline void ffn_weights(const FfnCall& call) {
  const Tensor& up = call.up;
  dispatch_float(kFfnOp, "up_gate_proj_weight", up, [](auto) {});
  Check{kFfnOp, "up_gate_proj_weight", up}.rank(3).dim(1, call.hidden()).contiguous();
  const int64_t experts = up.size(0), columns = up.size(2);
  if (columns % 2 != 0 || experts == 0)
    fail("ValueError", kFfnOp,
         ".up_gate_proj_weight: want [experts >= 1, hidden, 2 * inner], have ", shape_text(up));
  const Check down{kFfnOp, "down_proj_weight", call.down};
  down.rank(3).dim(0, experts).dim(1, columns / 2).dim(2, call.hidden());
  down.contiguous().same_dtype(up);
  if (!call.bias) return;
  const Check bias{kFfnOp, "up_gate_proj_bias", call.bias};
  bias.numel(experts * columns).same_dtype(call.x).contiguous();
}

inline ExpertRows ffn_rows(const Tensor& x, const Tensor& numbers, int64_t experts, bool counts) {
  const Check sums{kFfnOp, "tokens_expert_prefix_sum", numbers};
  sums.dtype<int64_t>("int64").rank(1).contiguous().dim(0, experts);
  if (counts) Check{kFfnOp, "permute_input", x}.dim(0, experts);
  const int64_t rows = counts ? x.size(0) * x.size(1) : x.size(0);
  return {numbers.data<int64_t>(), static_cast<int>(experts), rows, x.size(-2), counts};
}

// Whether the tensor cores' kernel can take it: one 16-bit type, rows of whole 16-byte units.
inline bool ffn_fits_tensor(const Launch& on, const FfnCall& call) {
  if (is<float>(call.x) || kind_of(call.x) != kind_of(call.up) || on.sm() < 80) return false;
  for (const void* p :
       {call.x.data<void>(), call.up.data<void>(), call.down.data<void>(), call.out.data<void>()})
    if (!aligned16(p)) return false;
  return call.hidden() % 8 == 0 && call.inner() % 8 == 0 && call.inner() > 0;
}

void moe_expert_ffn(Tensor permute_input, Tensor tokens_expert_prefix_sum,
                    Tensor up_gate_proj_weight, Tensor down_proj_weight,
                    OptTensor up_gate_proj_bias, OptTensor up_gate_proj_scale,
                    OptTensor down_proj_scale, OptTensor down_proj_in_scale,
                    OptTensor /*expert_idx_per_token*/, std::string_view quant_method,
                    bool used_in_ep_low_latency, Tensor out) {
  ffn_unquantised(quant_method, {up_gate_proj_scale, down_proj_scale, down_proj_in_scale});
  FfnCall call{{}, permute_input, up_gate_proj_weight, down_proj_weight, up_gate_proj_bias, out};
  dispatch_float(kFfnOp, "permute_input", call.x, [](auto) {});
  Check{kFfnOp, "permute_input", call.x}.rank(used_in_ep_low_latency ? 3 : 2).contiguous();
  ffn_weights(call);
  Check{kFfnOp, "out", out}.same_shape(call.x).same_dtype(call.x).contiguous();
  call.rows = ffn_rows(call.x, tokens_expert_prefix_sum, call.up.size(0), used_in_ep_low_latency);
  same_device(kFfnOp, call.x,
              {tokens_expert_prefix_sum, call.up, call.down, up_gate_proj_bias, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(kFfnOp, call.x);
  if (!ffn_fits_tensor(on, call)) return ffn_plain(on, call);
  is<bf16>(call.x) ? ffn_shapes<bf16>(on, call) : ffn_shapes<f16>(on, call);
}
FD_EXPORT(moe_expert_ffn)

}  // namespace fd
#endif

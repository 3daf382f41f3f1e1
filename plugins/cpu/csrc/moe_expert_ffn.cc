// Per expert: up and gate product, SwiGLU, down product, over the weights in the orders that the op
// defines. The engine's own methods use packed stacks instead (experts_packed.cc and the like).
#include <vector>

#include "fd/expert_codes.h"

namespace fd {
namespace {

const char* const kOp = "moe_expert_ffn";
constexpr int64_t kAheadRows = 16;  // rows of a weight are far apart: prefetch by hand

// Weights [depth][columns]: adjacent columns are the lanes of the tiles.
template <typename T>
struct RowMajorPanels {
  const T* w;
  int64_t columns;

  void fill(int64_t panel, int64_t k0, int64_t kc, float* to) const {
    const T* row = w + k0 * columns + panel * gemm::kPanel;
    const int n = static_cast<int>(std::min<int64_t>(gemm::kPanel, columns - panel * gemm::kPanel));
    for (int64_t k = 0; k < kc; ++k, row += columns, to += gemm::kPanel) {
      __builtin_prefetch(row + kAheadRows * columns);
      store16(to, n >= 16 ? load16(row) : load_tail(row, n));
      store16(to + 16, n == 32 ? load16(row + 16) : load_tail(row + 16, std::max(0, n - 16)));
    }
  }
};

template <typename T>
struct RowMajorStack : gemm::FloatStack {
  const T* w;

  // Few rows are bound by reading the weights, many by arithmetic on widened blocks of them.
  void run(const Rows& rows, const gemm::Sink& sink, const gemm::ExpertCell& cell) const {
    using Stored = std::conditional_t<std::is_same_v<T, bf16>, gemm::plain_bf16, T>;
    const T* at = w + cell.piece.expert * depth * columns;
    const gemm::Job part = job(rows, sink, cell.piece);
    if (part.rows > gemm::kMaxRows || columns % gemm::kPanel != 0)
      return gemm::block_range(part, RowMajorPanels<T>{at, columns}, cell.begin, cell.end,
                               scratch<1>(gemm::kGroupFloats));
    const auto* stored = reinterpret_cast<const Stored*>(at);
    gemm::stream(part, gemm::row_major_panels(stored, columns), cell.begin, cell.end);
  }
};

// The arguments under short names. `hidden` and `inner` are the sizes of the matrices.
struct Call {
  Tensor x, up, down;
  OptTensor bias, up_scale, down_scale;
  std::string_view method;
  int64_t experts, hidden, inner;
  Tensor out;

  bool plain() const { return method == "none" || method == "w16a16"; }

  void check_matrix(const char* arg, Tensor t, int64_t first, int64_t second) const {
    Check{kOp, arg, t}.rank(3).dim(0, experts).dim(1, first).dim(2, second).contiguous();
  }
  void check_scale(const char* arg, OptTensor t, int64_t columns) const {
    if (!t) fail("ValueError", kOp, ".", arg, ": want the scales of ", method, ", have None");
    Check{kOp, arg, t}.numel(experts * columns).contiguous();
  }
  void check_scales() const {
    check_scale("up_gate_proj_scale", up_scale, 2 * inner);
    check_scale("down_proj_scale", down_scale, hidden);
  }
  void check_bias() const {
    if (bias) Check{kOp, "up_gate_proj_bias", bias}.numel(experts * 2 * inner).same_dtype(x);
    if (bias) Check{kOp, "up_gate_proj_bias", bias}.contiguous();
  }
  template <typename X, typename Stack>
  void run(const gemm::Segments& segments, const Stack& first, const Stack& second) const {
    const X* shift = bias ? bias.data<X>() : nullptr;
    gemm::Experts<X, Stack>{first, second, shift, x.data<X>(), out.data<X>()}.run(segments);
  }
};

void run_plain(const Call& call, const gemm::Segments& segments) {
  dispatch_float(kOp, "permute_input", call.x, [&](auto a) {
    dispatch_float(kOp, "up_gate_proj_weight", call.up, [&](auto w) {
      using Stack = RowMajorStack<decltype(w)>;
      const Stack first{{call.hidden, 2 * call.inner}, call.up.data<decltype(w)>()};
      const Stack second{{call.inner, call.hidden}, call.down.data<decltype(w)>()};
      call.run<decltype(a)>(segments, first, second);
    });
  });
}

void run_codes(const Call& call, const gemm::Segments& segments) {
  const WeightLayout up = weight_layout(kOp, call.method, 0, -1, call.hidden, 2 * call.inner);
  const WeightLayout down = weight_layout(kOp, call.method, 0, -1, call.inner, call.hidden);
  dispatch_float(kOp, "permute_input", call.x, [&](auto a) {
    using X = decltype(a);
    using Stack = gemm::CodeStack<X>;
    const Stack first{{up.depth, up.columns}, up, call.up.data<uint8_t>(), call.up_scale.data<X>()};
    const Stack second{
        {down.depth, down.columns}, down, call.down.data<uint8_t>(), call.down_scale.data<X>()};
    call.run<X>(segments, first, second);
  });
}

// As float32, whatever they come in.
const float* wide(Tensor scales, std::vector<float>& space) {
  space.resize(static_cast<size_t>(scales.numel()));
  dispatch_float(kOp, "scale", scales, [&](auto tag) {
    const auto* from = scales.data<decltype(tag)>();
    for (size_t i = 0; i < space.size(); ++i) space[i] = to_float(from[i]);
  });
  return space.data();
}

void run_row_codes(const Call& call, const gemm::Segments& segments) {
  thread_local std::vector<float> up_scales, down_scales;
  const gemm::RowCodeStack first{call.hidden, 2 * call.inner, call.up.data<int8_t>(),
                                 wide(call.up_scale, up_scales)};
  const gemm::RowCodeStack second{call.inner, call.hidden, call.down.data<int8_t>(),
                                  wide(call.down_scale, down_scales)};
  dispatch_float(kOp, "permute_input", call.x,
                 [&](auto a) { call.run<decltype(a)>(segments, first, second); });
}

// By method: what the matrices' first two dimensions behind the experts are.
void check_weights(Call& call) {
  const bool int4 = call.method == "weight_only_int4", int8 = call.method == "weight_only_int8";
  if (!call.plain() && !int4 && !int8 && call.method != "w8a8")
    fail("ValueError", kOp, ".quant_method: want one of none, w16a16, weight_only_int8, ",
         "weight_only_int4, w8a8, have \"", call.method, "\"");
  const Tensor up = call.up;
  Check{kOp, "up_gate_proj_weight", up}.rank(3).dim(call.plain() ? 1 : 2, call.hidden);
  const int64_t columns = up.size(call.plain() ? 2 : 1) * (int4 ? 2 : 1);
  call.experts = up.size(0), call.inner = columns / 2;
  if (columns % 2 != 0 || call.experts == 0 || (int4 && call.hidden % 2 != 0))
    fail("ValueError", kOp, ".up_gate_proj_weight: want at least one expert and an even number ",
         "of outputs, have ", shape_text(up));
  Check{kOp, "up_gate_proj_weight", up}.contiguous();
  const int64_t rows = int4 ? call.hidden / 2 : call.hidden;
  if (call.plain())
    call.check_matrix("down_proj_weight", call.down, call.inner, call.hidden);
  else
    call.check_matrix("down_proj_weight", call.down, rows, call.inner);
  Check{kOp, "down_proj_weight", call.down}.same_dtype(up);
  if (!call.plain()) Check{kOp, "up_gate_proj_weight", up}.dtype<int8_t>("int8");
  if (!call.plain()) call.check_scales();
  if (int4 || int8) Check{kOp, "up_gate_proj_scale", call.up_scale}.same_dtype(call.x);
  if (int4 || int8) Check{kOp, "down_proj_scale", call.down_scale}.same_dtype(call.x);
  call.check_bias();
}

void refuse_scales(const Call& call, OptTensor down_in_scale) {
  if (down_in_scale || (call.plain() && (call.up_scale || call.down_scale)))
    fail("ValueError", kOp, ": want no ", down_in_scale ? "down_proj_in_scale" : "scales",
         " with quant_method \"", call.method, "\"");
}

gemm::Segments segments_of(const Tensor& x, const Tensor& numbers, int64_t experts, bool counts) {
  Check{kOp, "tokens_expert_prefix_sum", numbers}.dtype<int64_t>("int64").rank(1).contiguous();
  Check{kOp, "tokens_expert_prefix_sum", numbers}.dim(0, experts);
  if (counts) Check{kOp, "permute_input", x}.dim(0, experts);
  const int64_t rows = counts ? x.size(0) * x.size(1) : x.size(0);
  const gemm::Segments segments{numbers.data<int64_t>(), experts, x.size(-2), rows, counts};
  segments.check(kOp, "tokens_expert_prefix_sum");
  return segments;
}

}  // namespace

void moe_expert_ffn(Tensor permute_input, Tensor tokens_expert_prefix_sum,
                    Tensor up_gate_proj_weight, Tensor down_proj_weight,
                    OptTensor up_gate_proj_bias, OptTensor up_gate_proj_scale,
                    OptTensor down_proj_scale, OptTensor down_proj_in_scale,
                    OptTensor /*expert_idx_per_token*/, std::string_view quant_method,
                    bool used_in_ep_low_latency, Tensor out) {
  const Tensor x = permute_input;
  Check{kOp, "permute_input", x}.rank(used_in_ep_low_latency ? 3 : 2).contiguous();
  Call call{x,
            up_gate_proj_weight,
            down_proj_weight,
            up_gate_proj_bias,
            up_gate_proj_scale,
            down_proj_scale,
            quant_method,
            0,
            x.size(-1),
            0,
            out};
  check_weights(call);
  refuse_scales(call, down_proj_in_scale);
  Check{kOp, "out", out}.same_shape(x).same_dtype(x).contiguous();
  const gemm::Segments segments =
      segments_of(x, tokens_expert_prefix_sum, call.experts, used_in_ep_low_latency);
  const auto run = call.plain() ? run_plain : quant_method == "w8a8" ? run_row_codes : run_codes;
  run(call, segments);
}
FD_EXPORT(moe_expert_ffn)

}  // namespace fd

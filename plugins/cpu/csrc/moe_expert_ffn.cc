// Per expert: up and gate product, SwiGLU, down product. Weights are [depth][columns], whose
// adjacent columns are the lanes of the tiles: no packing.
#include "fd/dense_blocks.h"
#include "fd/dense_stream.h"
#include "fd/math.h"

namespace fd {
namespace {

const char* const kOp = "moe_expert_ffn";
constexpr int64_t kAheadRows = 16;  // rows of a weight are far apart: prefetch by hand

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
void silu_row(const T* h, int64_t inner, T* out) {
  for (int64_t i = 0; i < inner; i += kLanes) {
    const int n = static_cast<int>(std::min<int64_t>(kLanes, inner - i));
    store_tail(out + i, vsilu(load_tail(h + i, n)) * load_tail(h + inner + i, n), n);
  }
}

// X: activations, W: weights.
template <typename X, typename W>
struct Experts {
  const W *up, *down;
  const X* bias;  // null: none; [experts][2 * inner]
  int64_t hidden, inner;

  // Rows of one expert, at most kRowsPacked.
  void run(int64_t e, const X* x, int64_t rows, X* out) const {
    X* h = reinterpret_cast<X*>(scratch<2>(rows * inner * 3));
    X* a = h + rows * 2 * inner;
    product(x, rows, hidden, up + e * hidden * 2 * inner, 2 * inner, h,
            bias != nullptr ? bias + e * 2 * inner : nullptr);
    const int64_t width = inner;
    parallel_for(rows, 1 + 8192 / (width + 1), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) silu_row(h + r * 2 * width, width, a + r * width);
    });
    product(a, rows, inner, down + e * inner * hidden, hidden, out, nullptr);
  }

 private:
  static gemm::Kind kind() {
    return sizeof(X) == 4            ? gemm::Kind::kFloat
           : std::is_same_v<X, bf16> ? gemm::Kind::kBf16
                                     : gemm::Kind::kF16;
  }
  static void product(const X* x, int64_t rows, int64_t depth, const W* w, int64_t columns, X* out,
                      const X* add) {
    const gemm::Matrix in{reinterpret_cast<const char*>(x), kind(), rows, depth, depth};
    const gemm::Sink sink{reinterpret_cast<char*>(out),       columns, kind(), columns,
                          reinterpret_cast<const char*>(add), kind()};
    gemm::for_row_chunks(in, sink, [&](const gemm::Job& job) { multiply(job, w, columns); });
  }
  // Few rows are bound by reading the weights, many by arithmetic on widened blocks of them.
  static void multiply(const gemm::Job& job, const W* w, int64_t columns) {
    using Stored = std::conditional_t<std::is_same_v<W, bf16>, gemm::plain_bf16, W>;
    if (job.rows > gemm::kMaxRows || columns % gemm::kPanel != 0)
      return gemm::run_blocks(job, RowMajorPanels<W>{w, columns});
    const auto* stored = reinterpret_cast<const Stored*>(w);
    gemm::run_stream(job, gemm::row_major_panels(stored, columns));
  }
};

// Rows [first, end) of each expert, in units of rows of the flattened input.
struct Segments {
  const int64_t* numbers;  // inclusive prefix sums, or counts
  int64_t experts, capacity, rows;
  bool counts;

  int64_t first(int64_t e) const { return counts ? e * capacity : e == 0 ? 0 : numbers[e - 1]; }
  int64_t end(int64_t e) const { return counts ? e * capacity + numbers[e] : numbers[e]; }

  void check() const {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t low = counts ? 0 : first(e), high = counts ? capacity : rows;
      if (numbers[e] < low || numbers[e] > high)
        fail("ValueError", kOp, ".tokens_expert_prefix_sum: want ",
             counts ? "counts up to the rows of an expert" : "rising sums up to the rows",
             ", have ", numbers[e], " for expert ", e);
    }
  }
};

template <typename X, typename W>
void run_all(const Experts<X, W>& experts, const Segments& segments, const X* x, X* out) {
  const int64_t hidden = experts.hidden;
  const auto clear = [=](int64_t from, int64_t to) {
    std::fill(out + from * hidden, out + to * hidden, X{});
  };
  for (int64_t e = 0; e < segments.experts; ++e) {
    for (int64_t r = segments.first(e); r < segments.end(e); r += gemm::kRowsPacked)
      experts.run(e, x + r * hidden, std::min(gemm::kRowsPacked, segments.end(e) - r),
                  out + r * hidden);
    if (segments.counts) clear(segments.end(e), (e + 1) * segments.capacity);
  }
  if (!segments.counts) clear(segments.end(segments.experts - 1), segments.rows);
}

void check_unquantised(std::string_view method, std::initializer_list<OptTensor> scales) {
  if (method != "none" && method != "w16a16")
    fail("ValueError", kOp, ".quant_method: want \"none\" or \"w16a16\", have \"", method,
         "\": this kernel has 16-bit and float32 weights only");
  for (const OptTensor& scale : scales)
    if (scale) fail("ValueError", kOp, ": want no scales with quant_method \"", method, "\"");
}

void check_weights(const Tensor& x, const Tensor& up, const Tensor& down, OptTensor bias) {
  const int64_t hidden = x.size(-1);
  Check{kOp, "up_gate_proj_weight", up}.rank(3).dim(1, hidden).contiguous();
  const int64_t experts = up.size(0), columns = up.size(2);
  if (columns % 2 != 0 || experts == 0)
    fail("ValueError", kOp, ".up_gate_proj_weight: want [experts >= 1, hidden, 2 * inner], have ",
         shape_text(up));
  Check{kOp, "down_proj_weight", down}.rank(3).dim(0, experts).dim(1, columns / 2).dim(2, hidden);
  Check{kOp, "down_proj_weight", down}.contiguous().same_dtype(up);
  if (!bias) return;
  Check{kOp, "up_gate_proj_bias", bias}.numel(experts * columns).same_dtype(x).contiguous();
}

Segments segments_of(const Tensor& x, const Tensor& numbers, int64_t experts, bool counts) {
  Check{kOp, "tokens_expert_prefix_sum", numbers}.dtype<int64_t>("int64").rank(1).contiguous();
  Check{kOp, "tokens_expert_prefix_sum", numbers}.dim(0, experts);
  if (counts) Check{kOp, "permute_input", x}.dim(0, experts);
  const int64_t rows = counts ? x.size(0) * x.size(1) : x.size(0);
  const Segments segments{numbers.data<int64_t>(), experts, x.size(-2), rows, counts};
  segments.check();
  return segments;
}

}  // namespace

void moe_expert_ffn(Tensor permute_input, Tensor tokens_expert_prefix_sum,
                    Tensor up_gate_proj_weight, Tensor down_proj_weight,
                    OptTensor up_gate_proj_bias, OptTensor up_gate_proj_scale,
                    OptTensor down_proj_scale, OptTensor down_proj_in_scale,
                    OptTensor /*expert_idx_per_token*/, std::string_view quant_method,
                    bool used_in_ep_low_latency, Tensor out) {
  check_unquantised(quant_method, {up_gate_proj_scale, down_proj_scale, down_proj_in_scale});
  const Tensor x = permute_input, up = up_gate_proj_weight, down = down_proj_weight;
  Check{kOp, "permute_input", x}.rank(used_in_ep_low_latency ? 3 : 2).contiguous();
  check_weights(x, up, down, up_gate_proj_bias);
  Check{kOp, "out", out}.same_shape(x).same_dtype(x).contiguous();
  const Segments segments =
      segments_of(x, tokens_expert_prefix_sum, up.size(0), used_in_ep_low_latency);
  dispatch_float(kOp, "permute_input", x, [&](auto a) {
    dispatch_float(kOp, "up_gate_proj_weight", up, [&](auto w) {
      using X = decltype(a);
      using W = decltype(w);
      const X* bias = up_gate_proj_bias ? up_gate_proj_bias.data<X>() : nullptr;
      const Experts<X, W> all{up.data<W>(), down.data<W>(), bias, x.size(-1), up.size(2) / 2};
      run_all(all, segments, x.data<X>(), out.data<X>());
    });
  });
}
FD_EXPORT(moe_expert_ffn)

}  // namespace fd

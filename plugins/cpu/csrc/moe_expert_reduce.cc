#include "fd/check.h"
#include "fd/parallel.h"

namespace fd {
namespace {

const char* const kOp = "moe_expert_reduce";

template <typename T>
struct Reduce {
  const T *rows, *bias;  // bias: null or [experts][hidden]
  const float* weights;
  const int32_t *row_of, *expert_of;
  int64_t tokens, k, hidden;
  bool normalised;
  float scale;
  T* out;

  float factor(int64_t t) const {
    if (!normalised) return scale;
    float sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += weights[t * k + j];
    return sum == 0 ? 0.0f : scale / sum;
  }

  // Sixteen columns (fewer at the end) of one token, slots in order.
  vf columns(int64_t t, int64_t c, int lanes) const {
    vf sum{};
    for (int64_t j = 0; j < k; ++j) {
      const int64_t row = row_of[j * tokens + t];
      if (row < 0) continue;
      vf v = load(rows + row * hidden + c, lanes);
      if (bias != nullptr) v += load(bias + expert_of[t * k + j] * hidden + c, lanes);
      sum += v * weights[t * k + j];
    }
    return sum;
  }

  void token(int64_t t) const {
    const float f = factor(t);
    for (int64_t c = 0; c < hidden; c += kLanes) {
      const int lanes = static_cast<int>(hidden - c < kLanes ? hidden - c : kLanes);
      // A weight sum of zero gives zero whatever the rows hold.
      const vf y = normalised && f == 0 ? vf{} : columns(t, c, lanes) * f;
      lanes == kLanes ? store16(out + t * hidden + c, y)
                      : store_tail(out + t * hidden + c, y, lanes);
    }
  }

 private:
  static vf load(const T* p, int lanes) {
    return lanes == kLanes ? load16(p) : load_tail(p, lanes);
  }
};

void check_indices(const char* arg, const int32_t* p, int64_t n, int64_t end) {
  for (int64_t i = 0; i < n; ++i)
    if (p[i] < -1 || p[i] >= end)
      fail("ValueError", kOp, ".", arg, ": want -1 .. ", end - 1, ", have ", p[i], " at ", i);
}

// Expert ids choose rows of the bias; a slot without a row may hold -1.
void check_experts(const int32_t* expert_of, const int32_t* row_of, int64_t tokens, int64_t k) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < k; ++j)
      if (expert_of[t * k + j] < 0 && row_of[j * tokens + t] >= 0)
        fail("ValueError", kOp, ".top_k_indices: want an expert for token ", t, ", slot ", j,
             ", have -1");
}

void check_tables(const Tensor& weights, const Tensor& row_of, const Tensor& expert_of) {
  Check{kOp, "top_k_weight", weights}.dtype<float>("float32").same_shape(expert_of).contiguous();
  Check{kOp, "permute_indices_per_token", row_of}.dtype<int32_t>("int32").rank(2).contiguous();
  Check{kOp, "permute_indices_per_token", row_of}
      .dim(0, expert_of.size(1))
      .dim(1, expert_of.size(0));
  check_indices("permute_indices_per_token", row_of.data<int32_t>(), row_of.numel(),
                row_of.numel());
}

void check_bias(const Tensor& bias, const Tensor& rows, const Tensor& row_of,
                const Tensor& expert_of) {
  Check{kOp, "down_proj_bias", bias}.rank(2).dim(1, rows.size(1)).same_dtype(rows).contiguous();
  const int32_t* experts = expert_of.data<int32_t>();
  check_indices("top_k_indices", experts, expert_of.numel(), bias.size(0));
  check_experts(experts, row_of.data<int32_t>(), expert_of.size(0), expert_of.size(1));
}

}  // namespace

void moe_expert_reduce(Tensor ffn_out, Tensor top_k_weight, Tensor permute_indices_per_token,
                       Tensor top_k_indices, OptTensor down_proj_bias, bool norm_topk_prob,
                       double routed_scaling_factor, Tensor out) {
  const Tensor row_of = permute_indices_per_token, expert_of = top_k_indices;
  Check{kOp, "top_k_indices", expert_of}.dtype<int32_t>("int32").rank(2).contiguous();
  const int64_t tokens = expert_of.size(0), k = expert_of.size(1);
  Check{kOp, "ffn_out", ffn_out}.rank(2).dim(0, tokens * k).contiguous();
  const int64_t hidden = ffn_out.size(1);
  Check{kOp, "out", out}.rank(2).dim(0, tokens).dim(1, hidden).same_dtype(ffn_out).contiguous();
  check_tables(top_k_weight, row_of, expert_of);
  if (down_proj_bias) check_bias(down_proj_bias, ffn_out, row_of, expert_of);
  dispatch_float(kOp, "ffn_out", ffn_out, [&](auto tag) {
    using T = decltype(tag);
    const T* bias = down_proj_bias ? down_proj_bias.data<T>() : nullptr;
    const float scale = static_cast<float>(routed_scaling_factor);
    const Reduce<T> reduce{ffn_out.data<T>(),
                           bias,
                           top_k_weight.data<float>(),
                           row_of.data<int32_t>(),
                           expert_of.data<int32_t>(),
                           tokens,
                           k,
                           hidden,
                           norm_topk_prob,
                           scale,
                           out.data<T>()};
    parallel_for(tokens, 1 + 16384 / (hidden * k + 1), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) reduce.token(t);
    });
  });
}
FD_EXPORT(moe_expert_reduce)

}  // namespace fd

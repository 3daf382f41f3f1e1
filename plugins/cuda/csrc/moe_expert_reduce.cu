#include "fd/overlap.cuh"
#include "fd/reduce.cuh"

namespace fd {

template <typename T>
struct ReduceArgs {
  const T *rows, *bias;  // bias: null or [experts, hidden]
  const float* weights;  // [tokens, k]
  const int32_t *row_of, *expert_of;
  int64_t tokens, hidden, experts;
  int k;
  bool normalised;
  float scale;
  T* out;

  __device__ __forceinline__ float weight_sum(int64_t t) const {
    float sum = 0;
    for (int j = 0; j < k; ++j) sum += weights[t * k + j];
    return sum;
  }
  // Slot j's row; -1 for none, and for what lies outside, which the host cannot see.
  __device__ __forceinline__ int64_t row(int64_t t, int j) const {
    const int64_t at = row_of[j * tokens + t];
    return at < tokens * k ? at : -1;
  }
  // Adds slot j's columns from `c` on.
  template <int N>
  __device__ __forceinline__ void add(int64_t t, int j, int64_t c, float weight,
                                      const Vec<T, N>& values, float (&total)[N]) const {
    const int64_t e = bias != nullptr ? expert_of[t * k + j] : -1;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float shift = e >= 0 && e < experts ? to_float(bias[e * hidden + c + i]) : 0.f;
      total[i] += weight * (to_float(values[i]) + shift);
    }
  }
};

constexpr int kReduceThreads = 128;

// N columns a thread, slots in order.
template <typename T, int N>
__global__ void __launch_bounds__(kReduceThreads) moe_expert_reduce_tokens(ReduceArgs<T> a) {
  wait_for_inputs();
  const int64_t t = blockIdx.y;
  const int64_t c = (int64_t{blockIdx.x} * kReduceThreads + threadIdx.x) * N;
  if (c >= a.hidden) return;
  constexpr int kAhead = 8;  // slots whose loads run together
  float total[N] = {};
  for (int first = 0; first < a.k; first += kAhead) {
    int64_t rows[kAhead];
    float weights[kAhead];
    Vec<T, N> values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      rows[i] = first + i < a.k ? a.row(t, first + i) : -1;
      weights[i] = rows[i] >= 0 ? a.weights[t * a.k + first + i] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      values[i] =
          *reinterpret_cast<const Vec<T, N>*>(a.rows + (rows[i] >= 0 ? rows[i] : 0) * a.hidden + c);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (rows[i] >= 0) a.add(t, first + i, c, weights[i], values[i], total);
  }
  const float sum = a.normalised ? a.weight_sum(t) : 1.f;
  Vec<T, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i)
    result[i] = from_float<T>(sum == 0.f ? 0.f : total[i] / sum * a.scale);
  *reinterpret_cast<Vec<T, N>*>(a.out + t * a.hidden + c) = result;
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/cuda.h"

namespace fd {

constexpr const char* kReduceOp = "moe_expert_reduce";

inline void reduce_tables(const Tensor& weights, const Tensor& row_of, const Tensor& expert_of) {
  const char* op = kReduceOp;
  Check{op, "top_k_weight", weights}.dtype<float>("float32").same_shape(expert_of).contiguous();
  Check{op, "permute_indices_per_token", row_of}.dtype<int32_t>("int32").rank(2).contiguous();
  Check{op, "permute_indices_per_token", row_of}
      .dim(0, expert_of.size(1))
      .dim(1, expert_of.size(0));
}

template <typename T, int N>
void reduce_launch(const Launch& on, const ReduceArgs<T>& a) {
  const int64_t columns = (a.hidden + N - 1) / N;
  const auto blocks = static_cast<unsigned>((columns + kReduceThreads - 1) / kReduceThreads);
  run_overlapped(on, moe_expert_reduce_tokens<T, N>, dim3(blocks, static_cast<unsigned>(a.tokens)),
                 dim3(kReduceThreads), 0, a);
}

void moe_expert_reduce(Tensor ffn_out, Tensor top_k_weight, Tensor permute_indices_per_token,
                       Tensor top_k_indices, OptTensor down_proj_bias, bool norm_topk_prob,
                       double routed_scaling_factor, Tensor out) {
  const char* op = kReduceOp;
  const Tensor expert_of = top_k_indices;
  Check{op, "top_k_indices", expert_of}.dtype<int32_t>("int32").rank(2).contiguous();
  const int64_t tokens = expert_of.size(0), k = expert_of.size(1);
  Check{op, "ffn_out", ffn_out}.rank(2).dim(0, tokens * k).contiguous();
  const int64_t hidden = ffn_out.size(1);
  Check{op, "out", out}.rank(2).dim(0, tokens).dim(1, hidden).same_dtype(ffn_out).contiguous();
  reduce_tables(top_k_weight, permute_indices_per_token, expert_of);
  const OptTensor bias = down_proj_bias;
  if (bias)
    Check{op, "down_proj_bias", bias}.rank(2).dim(1, hidden).same_dtype(ffn_out).contiguous();
  same_device(op, ffn_out, {top_k_weight, permute_indices_per_token, expert_of, bias, out});
  dispatch_float(op, "ffn_out", ffn_out, [&](auto tag) {
    using T = decltype(tag);
    const ReduceArgs<T> a{ffn_out.data<T>(),
                          bias ? bias.data<T>() : nullptr,
                          top_k_weight.data<float>(),
                          permute_indices_per_token.data<int32_t>(),
                          expert_of.data<int32_t>(),
                          tokens,
                          hidden,
                          bias ? bias.size(0) : 0,
                          static_cast<int>(k),
                          norm_topk_prob,
                          static_cast<float>(routed_scaling_factor),
                          out.data<T>()};
    const bool packed = hidden % kPack<T> == 0 && aligned16(a.rows) && aligned16(a.out);
    const Launch on = launch_on(op, ffn_out);
    packed ? reduce_launch<T, kPack<T>>(on, a) : reduce_launch<T, 1>(on, a);
  });
}
FD_EXPORT(moe_expert_reduce)

}  // namespace fd
#endif

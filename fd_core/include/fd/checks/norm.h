// The tensors of the norms.
#pragma once
#include "fd/check.h"

namespace fd {

// A norm weight: a vector of `n` elements of x's type or float32.
inline void check_weight(const char* op, const char* arg, const Tensor& weight, const Tensor& x,
                         int64_t n) {
  const Check check{op, arg, weight};
  check.rank(1).dim(0, n).contiguous();
  if (!is<float>(weight)) check.same_dtype(x);
}

inline void check_eps(const char* op, double eps) {
  if (!(eps >= 0)) fail("ValueError", op, ".eps: want >= 0, have ", eps);
}

inline void check_rms_norm(const char* op, const Tensor& x, const Tensor& weight, double eps,
                           const Tensor& out) {
  Check{op, "x", x}.rank(2).inner_contiguous();
  check_weight(op, "weight", weight, x, x.size(1));
  Check{op, "out", out}.same_shape(x).same_dtype(x).inner_contiguous();
  check_eps(op, eps);
}

inline void check_layer_norm(const char* op, const Tensor& x, const Tensor& weight,
                             const OptTensor& bias, double eps, const Tensor& out) {
  Check{op, "x", x}.rank(2).inner_contiguous();
  check_weight(op, "weight", weight, x, x.size(1));
  if (bias) Check{op, "bias", bias}.same_shape(weight).same_dtype(weight).contiguous();
  Check{op, "out", out}.same_shape(x).same_dtype(x).inner_contiguous();
  check_eps(op, eps);
}

inline void check_fused_add(const char* op, const Tensor& x, const Tensor& residual,
                            const Tensor& weight, double eps) {
  Check{op, "x", x}.rank(2).inner_contiguous();
  Check{op, "residual", residual}.same_shape(x).same_dtype(x).inner_contiguous();
  check_weight(op, "weight", weight, x, x.size(1));
  check_eps(op, eps);
  if (x.numel() > 0 && x.data<char>() == residual.data<char>())
    fail("ValueError", op, ".residual: want memory of its own, have x's");
}

// Heads of `qkv` [tokens, q_size + 2 kv_size].
inline void check_qk_norm(const char* op, const Tensor& qkv, const Tensor& q_norm_weight,
                          const Tensor& k_norm_weight, double eps, int64_t q_size, int64_t kv_size,
                          int64_t head_dim) {
  if (head_dim <= 0) fail("ValueError", op, ".head_dim: want > 0, have ", head_dim);
  if (q_size < 0 || q_size % head_dim != 0)
    fail("ValueError", op, ".q_size: want a multiple of head_dim ", head_dim, ", have ", q_size);
  if (kv_size < 0 || kv_size % head_dim != 0)
    fail("ValueError", op, ".kv_size: want a multiple of head_dim ", head_dim, ", have ", kv_size);
  Check{op, "qkv", qkv}.rank(2).dim(1, q_size + 2 * kv_size).inner_contiguous();
  check_weight(op, "q_norm_weight", q_norm_weight, qkv, head_dim);
  check_weight(op, "k_norm_weight", k_norm_weight, qkv, head_dim);
  Check{op, "k_norm_weight", k_norm_weight}.same_dtype(q_norm_weight);
  check_eps(op, eps);
}

// f(T{}, W{}) for x's element type and the weight's.
template <typename F>
void dispatch_norm(const char* op, const Tensor& x, const Tensor& weight, F&& f) {
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    if (is<float>(weight))
      f(tag, float{});
    else
      f(tag, T{});
  });
}

}  // namespace fd

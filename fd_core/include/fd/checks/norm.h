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

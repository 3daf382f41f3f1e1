#include "fd/norm.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

// residual = T(x + residual); the sum of squares of what was stored.
template <typename T>
float add_row(const T* x, T* residual, int64_t n) {
  return sum_squares_of(
      n,
      [=](int64_t i) {
        store16(residual + i, load16(x + i) + load16(residual + i));
        return load16(residual + i);
      },
      [=](int64_t i, int m) {
        store_tail(residual + i, load_tail(x + i, m) + load_tail(residual + i, m), m);
        return load_tail(residual + i, m);
      });
}

}  // namespace

void fused_add_rmsnorm(Tensor x, Tensor residual, Tensor weight, double eps) {
  check_fused_add("fused_add_rmsnorm", x, residual, weight, eps);
  dispatch_norm("fused_add_rmsnorm", x, weight, [&](auto tag, auto weight_tag) {
    using T = decltype(tag);
    const int64_t hidden = x.size(1), xs = x.stride(0), rs = residual.stride(0);
    const auto* pw = weight.data<decltype(weight_tag)>();
    T *px = x.data<T>(), *pr = residual.data<T>();
    parallel_for(x.size(0), row_grain(hidden), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float sum = add_row(px + r * xs, pr + r * rs, hidden);
        const float scale = rms_scale(sum, hidden, static_cast<float>(eps));
        scale_row(pr + r * rs, pw, scale, hidden, px + r * xs);
      }
    });
  });
}

FD_EXPORT(fused_add_rmsnorm)

}  // namespace fd

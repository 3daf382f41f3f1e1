#include "fd/norm.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

constexpr const char* kOp = "qk_rmsnorm_fused";

template <typename T, typename W>
void heads(T* first, const W* weight, float eps, int64_t size, int64_t head_dim) {
  for (T* head = first; head < first + size; head += head_dim)
    rms_row(head, weight, eps, head_dim, head);
}

}  // namespace

void qk_rmsnorm_fused(Tensor qkv, Tensor q_norm_weight, Tensor k_norm_weight, double eps,
                      int64_t q_size, int64_t kv_size, int64_t head_dim) {
  check_qk_norm(kOp, qkv, q_norm_weight, k_norm_weight, eps, q_size, kv_size, head_dim);
  dispatch_norm(kOp, qkv, q_norm_weight, [&](auto tag, auto weight_tag) {
    using T = decltype(tag);
    using W = decltype(weight_tag);
    const W *wq = q_norm_weight.data<W>(), *wk = k_norm_weight.data<W>();
    T* p = qkv.data<T>();
    const int64_t stride = qkv.stride(0);
    const float e = static_cast<float>(eps);
    parallel_for(qkv.size(0), row_grain(q_size + kv_size), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        heads(p + r * stride, wq, e, q_size, head_dim);
        heads(p + r * stride + q_size, wk, e, kv_size, head_dim);
      }
    });
  });
}

FD_EXPORT(qk_rmsnorm_fused)

}  // namespace fd

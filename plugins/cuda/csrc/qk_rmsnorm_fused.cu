#include "fd/heads.cuh"

namespace fd {

// Query and key heads of every token in a row, `step` elements from token to token.
template <typename T, typename W>
struct QkHeads {
  T* qkv;
  int64_t step, count;
  const W *q_weight, *k_weight;
  int q_heads, heads, dim;

  __device__ __forceinline__ T* at(int64_t i) const {
    return qkv + i / heads * step + i % heads * dim;
  }
  __device__ __forceinline__ const W* weight(int64_t i) const {
    return i % heads < q_heads ? q_weight : k_weight;
  }
};

// A head over a group of `lanes` lanes, 16 bytes each.
template <typename T, typename W>
__global__ void qk_rmsnorm_fused_packs(QkHeads<T, W> all, float eps, int lanes) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
  const int at = threadIdx.x % lanes * kPack<T>;
  const bool mine = i < all.count && at < all.dim;
  Pack<T> kept;
  if (mine) kept = load_pack(all.at(i) + at);
  const float sum = group_sum(mine ? sum_squares<T>(kept) : 0.f, lanes);
  const float scale = rsqrtf(sum / static_cast<float>(all.dim) + eps);
  if (mine) store_pack(all.at(i) + at, scaled<T, W>(kept, scale, all.weight(i) + at));
}

// Any size and alignment: a warp a head.
template <typename T, typename W>
__global__ void qk_rmsnorm_fused_any(QkHeads<T, W> all, float eps) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (i >= all.count) return;
  T* head = all.at(i);
  float sum = 0.f;
  for (int d = lane; d < all.dim; d += kWarp) sum += to_float(head[d]) * to_float(head[d]);
  const float scale = rsqrtf(group_sum(sum, kWarp) / static_cast<float>(all.dim) + eps);
  for (int d = lane; d < all.dim; d += kWarp)
    head[d] = from_float<T>(to_float(head[d]) * scale * to_float(all.weight(i)[d]));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/norm.h"

namespace fd {

template <typename T, typename W>
void qk_rmsnorm_fused_launch(const Launch& on, const QkHeads<T, W>& all, float eps) {
  const RowShape shape = row_shape<T>(all.dim, {all.step}, {all.qkv, all.q_weight, all.k_weight});
  const int lanes = pow2_lanes(all.dim / kPack<T>);
  const bool packs = shape.vectors != 0 && lanes <= kWarp;
  const int threads = 128, heads = threads / (packs ? lanes : kWarp);
  const dim3 grid((all.count + heads - 1) / heads);
  if (packs)
    run_overlapped(on, qk_rmsnorm_fused_packs<T, W>, grid, dim3(threads), 0, all, eps, lanes);
  else
    run_overlapped(on, qk_rmsnorm_fused_any<T, W>, grid, dim3(threads), 0, all, eps);
}

void qk_rmsnorm_fused(Tensor qkv, Tensor q_norm_weight, Tensor k_norm_weight, double eps,
                      int64_t q_size, int64_t kv_size, int64_t head_dim) {
  const char* op = "qk_rmsnorm_fused";
  check_qk_norm(op, qkv, q_norm_weight, k_norm_weight, eps, q_size, kv_size, head_dim);
  same_device(op, qkv, {q_norm_weight, k_norm_weight});
  const Launch on = launch_on(op, qkv);
  const int64_t heads = (q_size + kv_size) / head_dim;
  dispatch_norm(op, qkv, q_norm_weight, [&](auto tag, auto weight_tag) {
    using T = decltype(tag);
    using W = decltype(weight_tag);
    const QkHeads<T, W> all{qkv.data<T>(),           qkv.stride(0),
                            qkv.size(0) * heads,     q_norm_weight.data<W>(),
                            k_norm_weight.data<W>(), static_cast<int>(q_size / head_dim),
                            static_cast<int>(heads), static_cast<int>(head_dim)};
    qk_rmsnorm_fused_launch(on, all, static_cast<float>(eps));
  });
}
FD_EXPORT(qk_rmsnorm_fused)

}  // namespace fd
#endif

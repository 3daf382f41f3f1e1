#include "fd/norm.cuh"

namespace fd {

// One block a row; the sum stays in registers, as it was rounded for `residual`.
template <typename T, typename W, int V, bool Ahead>
__global__ void __launch_bounds__(kRowThreads<V>)
    fused_add_rmsnorm_rows(T* x, int64_t x_step, T* residual, int64_t residual_step,
                           const W* weight, float eps, int64_t hidden) {
  __shared__ float parts[kRowParts<V>];
  RowWeights<T, W, V, Ahead> weights{weight, {}};
  weights.fetch(hidden);
  let_next_start();
  wait_for_inputs();
  x += blockIdx.x * x_step, residual += blockIdx.x * residual_step;
  Pack<T> kept[V], other[V];
  each_pack<T, V>(hidden, [&](int v, int64_t at) {
    kept[v] = load_pack(x + at), other[v] = load_pack(residual + at);
  });
  weights.load(hidden);
  each_pack<T, V>(hidden, [&](int v, int64_t at) {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i)
      kept[v][i] = from_float<T>(to_float(kept[v][i]) + to_float(other[v][i]));
    store_pack(residual + at, kept[v]);
  });
  const float scale = rms_scale<T, V>(kept, hidden, eps, parts);
  each_pack<T, V>(
      hidden, [&](int v, int64_t at) { store_pack(x + at, weights.times(kept[v], scale, v, at)); });
}

// Any width, alignment and stride: two passes over the row.
template <typename T, typename W>
__global__ void fused_add_rmsnorm_any(T* x, int64_t x_step, T* residual, int64_t residual_step,
                                      const W* weight, float eps, int64_t hidden) {
  __shared__ float scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  x += blockIdx.x * x_step, residual += blockIdx.x * residual_step;
  float sum = 0.f;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x) {
    const T total = from_float<T>(to_float(x[i]) + to_float(residual[i]));
    residual[i] = total;
    sum += to_float(total) * to_float(total);
  }
  const float scale = rms_scale(sum, hidden, eps, scratch);
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x)
    x[i] = from_float<T>(to_float(residual[i]) * scale * to_float(weight[i]));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/norm.h"

namespace fd {

template <typename T, typename W>
void fused_add_rmsnorm_launch(const Launch& on, Tensor x, Tensor residual, Tensor weight,
                              float eps) {
  const int64_t hidden = x.size(1), x_step = x.stride(0), residual_step = residual.stride(0);
  T *px = x.data<T>(), *pr = residual.data<T>();
  const W* pw = weight.data<W>();
  const RowShape shape = row_shape<T>(hidden, {x_step, residual_step}, {px, pr, pw});
  const auto start = [&](auto kernel) {
    run_overlapped(on, kernel, dim3(x.size(0)), dim3(shape.threads), 0, px, x_step, pr,
                   residual_step, pw, eps, hidden);
  };
  const bool ahead = x.size(0) <= 2 * on.processors();
  switch (shape.vectors) {
    case 1:
      return start(ahead ? fused_add_rmsnorm_rows<T, W, 1, true>
                         : fused_add_rmsnorm_rows<T, W, 1, false>);
    case 2:
      return start(ahead ? fused_add_rmsnorm_rows<T, W, 2, true>
                         : fused_add_rmsnorm_rows<T, W, 2, false>);
    case 4:
      return start(ahead ? fused_add_rmsnorm_rows<T, W, 4, true>
                         : fused_add_rmsnorm_rows<T, W, 4, false>);
    default:
      return start(fused_add_rmsnorm_any<T, W>);
  }
}

void fused_add_rmsnorm(Tensor x, Tensor residual, Tensor weight, double eps) {
  const char* op = "fused_add_rmsnorm";
  check_fused_add(op, x, residual, weight, eps);
  same_device(op, x, {residual, weight});
  const Launch on = launch_on(op, x);
  dispatch_norm(op, x, weight, [&](auto tag, auto weight_tag) {
    fused_add_rmsnorm_launch<decltype(tag), decltype(weight_tag)>(on, x, residual, weight,
                                                                  static_cast<float>(eps));
  });
}
FD_EXPORT(fused_add_rmsnorm)

}  // namespace fd
#endif

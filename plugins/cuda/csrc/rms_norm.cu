#include "fd/reduce.cuh"

namespace fd {

// One block a row, read once and kept in registers: V vectors of 16 bytes per thread.
template <typename T, typename W, int V>
__global__ void rms_norm_rows(const T* x, int64_t x_step, const W* weight, float eps,
                              int64_t hidden, T* out, int64_t out_step) {
  constexpr int N = kPack<T>;
  __shared__ float scratch[kWarp];
  const T* row = x + blockIdx.x * x_step;
  Vec<T, N> kept[V];
  float sum = 0.f;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t at = (int64_t{v} * blockDim.x + threadIdx.x) * N;
    if (at >= hidden) continue;
    kept[v] = *reinterpret_cast<const Vec<T, N>*>(row + at);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += to_float(kept[v][i]) * to_float(kept[v][i]);
  }
  const float scale = rsqrtf(block_reduce<Sum>(sum, scratch) / static_cast<float>(hidden) + eps);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t at = (int64_t{v} * blockDim.x + threadIdx.x) * N;
    if (at >= hidden) continue;
#pragma unroll
    for (int i = 0; i < N; ++i)
      kept[v][i] = from_float<T>(to_float(kept[v][i]) * scale * to_float(weight[at + i]));
    *reinterpret_cast<Vec<T, N>*>(out + blockIdx.x * out_step + at) = kept[v];
  }
}

// Any width, alignment and stride: two passes over the row.
template <typename T, typename W>
__global__ void rms_norm_any(const T* x, int64_t x_step, const W* weight, float eps, int64_t hidden,
                             T* out, int64_t out_step) {
  __shared__ float scratch[kWarp];
  const T* row = x + blockIdx.x * x_step;
  float sum = 0.f;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x)
    sum += to_float(row[i]) * to_float(row[i]);
  const float scale = rsqrtf(block_reduce<Sum>(sum, scratch) / static_cast<float>(hidden) + eps);
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x)
    out[blockIdx.x * out_step + i] = from_float<T>(to_float(row[i]) * scale * to_float(weight[i]));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/norm.h"

namespace fd {

template <typename T, typename W>
void rms_norm_launch(const Launch& on, Tensor x, Tensor weight, float eps, Tensor out) {
  const int64_t hidden = x.size(1), x_step = x.stride(0), out_step = out.stride(0);
  const T* from = x.data<T>();
  T* to = out.data<T>();
  const RowShape shape = row_shape<T>(hidden, {x_step, out_step}, {from, to});
  const auto launch = [&](auto kernel) {
    run(on, kernel, dim3(x.size(0)), dim3(shape.threads), 0, from, x_step,
        static_cast<const W*>(weight.data<W>()), eps, hidden, to, out_step);
  };
  switch (shape.vectors) {
    case 1:
      return launch(rms_norm_rows<T, W, 1>);
    case 2:
      return launch(rms_norm_rows<T, W, 2>);
    case 4:
      return launch(rms_norm_rows<T, W, 4>);
    default:
      return launch(rms_norm_any<T, W>);
  }
}

void rms_norm(Tensor x, Tensor weight, double eps, Tensor out) {
  const char* op = "rms_norm";
  Check{op, "x", x}.rank(2).inner_contiguous();
  check_weight(op, "weight", weight, x, x.size(1));
  Check{op, "out", out}.same_shape(x).same_dtype(x).inner_contiguous();
  check_eps(op, eps);
  same_device(op, x, {weight, out});
  const Launch on = launch_on(op, x);
  dispatch_norm(op, x, weight, [&](auto tag, auto weight_tag) {
    rms_norm_launch<decltype(tag), decltype(weight_tag)>(on, x, weight, static_cast<float>(eps),
                                                         out);
  });
}
FD_EXPORT(rms_norm)

}  // namespace fd
#endif

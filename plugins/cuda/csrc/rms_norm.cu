#include "fd/norm.cuh"

namespace fd {

// One block a row, read once and kept in registers: V vectors of 16 bytes per thread, all of them
// under way before the first is used.
template <typename T, typename W, int V, bool Ahead>
__global__ void __launch_bounds__(kRowThreads<V>, !Ahead && V == 2 ? 4 : 1)
    rms_norm_rows(const T* x, int64_t x_step, const W* weight, float eps, int64_t hidden, T* out,
                  int64_t out_step) {
  __shared__ float parts[kRowParts<V>];
  RowWeights<T, W, V, Ahead> weights{weight, {}};
  weights.fetch(hidden);
  let_next_start();
  wait_for_inputs();
  x += blockIdx.x * x_step, out += blockIdx.x * out_step;
  Pack<T> kept[V];
  each_pack<T, V>(
      hidden, [&](int v, int64_t at) { kept[v] = Ahead ? load_pack(x + at) : load_once(x + at); });
  weights.load(hidden);
  const float scale = rms_scale<T, V>(kept, hidden, eps, parts);
  each_pack<T, V>(hidden, [&](int v, int64_t at) {
    const Pack<T> y = weights.times(kept[v], scale, v, at);
    Ahead ? store_pack(out + at, y) : store_once(out + at, y);
  });
}

// Any width, alignment and stride: two passes over the row.
template <typename T, typename W>
__global__ void rms_norm_any(const T* x, int64_t x_step, const W* weight, float eps, int64_t hidden,
                             T* out, int64_t out_step) {
  __shared__ float scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  x += blockIdx.x * x_step, out += blockIdx.x * out_step;
  float sum = 0.f;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x) sum += to_float(x[i]) * to_float(x[i]);
  const float scale = rms_scale(sum, hidden, eps, scratch);
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x)
    out[i] = from_float<T>(to_float(x[i]) * scale * to_float(weight[i]));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/norm.h"

namespace fd {

template <typename T, typename W>
void rms_norm_launch(const Launch& on, Tensor x, Tensor weight, float eps, Tensor out) {
  const int64_t hidden = x.size(1), x_step = x.stride(0), out_step = out.stride(0);
  const T* from = x.data<T>();
  const W* by = weight.data<W>();
  T* to = out.data<T>();
  const RowShape shape = row_shape<T>(hidden, {x_step, out_step}, {from, by, to});
  const auto start = [&](auto kernel) {
    run_overlapped(on, kernel, dim3(x.size(0)), dim3(shape.threads), 0, from, x_step, by, eps,
                   hidden, to, out_step);
  };
  const bool ahead = x.size(0) <= 2 * on.processors();
  switch (shape.vectors) {
    case 1:
      return start(ahead ? rms_norm_rows<T, W, 1, true> : rms_norm_rows<T, W, 1, false>);
    case 2:
      return start(ahead ? rms_norm_rows<T, W, 2, true> : rms_norm_rows<T, W, 2, false>);
    case 4:
      return start(ahead ? rms_norm_rows<T, W, 4, true> : rms_norm_rows<T, W, 4, false>);
    default:
      return start(rms_norm_any<T, W>);
  }
}

void rms_norm(Tensor x, Tensor weight, double eps, Tensor out) {
  const char* op = "rms_norm";
  check_rms_norm(op, x, weight, eps, out);
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

#include "fd/norm.cuh"

namespace fd {

// One block a row, read once and kept in registers; mean first, then the centred squares.
template <typename T, typename W, int V>
__global__ void __launch_bounds__(kRowThreads<V>)
    layer_norm_rows(const T* x, int64_t x_step, const W* weight, const W* bias, float eps,
                    int64_t hidden, T* out, int64_t out_step) {
  __shared__ float scratch[2][kWarp];
  let_next_start();
  wait_for_inputs();
  x += blockIdx.x * x_step, out += blockIdx.x * out_step;
  Pack<T> kept[V];
  float sum = 0.f, squares = 0.f;
  each_pack<T, V>(hidden, [&](int v, int64_t at) { kept[v] = load_pack(x + at); });
  each_pack<T, V>(hidden, [&](int v, int64_t) {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) sum += to_float(kept[v][i]);
  });
  const float mean = block_reduce<Sum>(sum, scratch[0]) / static_cast<float>(hidden);
  each_pack<T, V>(hidden, [&](int v, int64_t) {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const float centred = to_float(kept[v][i]) - mean;
      squares += centred * centred;
    }
  });
  const float scale = rms_scale(squares, hidden, eps, scratch[1]);
  each_pack<T, V>(hidden, [&](int v, int64_t at) {
    const Floats<kPack<T>, W> w(weight + at);
    float y[kPack<T>];
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) y[i] = (to_float(kept[v][i]) - mean) * scale * w[i];
    if (bias != nullptr) {
      const Floats<kPack<T>, W> shift(bias + at);
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) y[i] += shift[i];
    }
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) kept[v][i] = from_float<T>(y[i]);
    store_pack(out + at, kept[v]);
  });
}

// Any width, alignment and stride: three passes over the row.
template <typename T, typename W>
__global__ void layer_norm_any(const T* x, int64_t x_step, const W* weight, const W* bias,
                               float eps, int64_t hidden, T* out, int64_t out_step) {
  __shared__ float scratch[2][kWarp];
  let_next_start();
  wait_for_inputs();
  x += blockIdx.x * x_step, out += blockIdx.x * out_step;
  float sum = 0.f, squares = 0.f;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x) sum += to_float(x[i]);
  const float mean = block_reduce<Sum>(sum, scratch[0]) / static_cast<float>(hidden);
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x)
    squares += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
  const float scale = rms_scale(squares, hidden, eps, scratch[1]);
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x)
    out[i] = from_float<T>((to_float(x[i]) - mean) * scale * to_float(weight[i]) +
                           (bias == nullptr ? 0.f : to_float(bias[i])));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/norm.h"

namespace fd {

template <typename T, typename W>
void layer_norm_launch(const Launch& on, Tensor x, Tensor weight, OptTensor bias, float eps,
                       Tensor out) {
  const int64_t hidden = x.size(1), x_step = x.stride(0), out_step = out.stride(0);
  const T* px = x.data<T>();
  const W *pw = weight.data<W>(), *pb = bias ? bias.data<W>() : nullptr;
  T* po = out.data<T>();
  const RowShape shape = row_shape<T>(hidden, {x_step, out_step}, {px, pw, pb, po});
  const auto start = [&](auto kernel) {
    run_overlapped(on, kernel, dim3(x.size(0)), dim3(shape.threads), 0, px, x_step, pw, pb, eps,
                   hidden, po, out_step);
  };
  switch (shape.vectors) {
    case 1:
      return start(layer_norm_rows<T, W, 1>);
    case 2:
      return start(layer_norm_rows<T, W, 2>);
    case 4:
      return start(layer_norm_rows<T, W, 4>);
    default:
      return start(layer_norm_any<T, W>);
  }
}

void layer_norm(Tensor x, Tensor weight, OptTensor bias, double eps, Tensor out) {
  const char* op = "layer_norm";
  check_layer_norm(op, x, weight, bias, eps, out);
  same_device(op, x, {weight, bias, out});
  const Launch on = launch_on(op, x);
  dispatch_norm(op, x, weight, [&](auto tag, auto weight_tag) {
    layer_norm_launch<decltype(tag), decltype(weight_tag)>(on, x, weight, bias,
                                                           static_cast<float>(eps), out);
  });
}
FD_EXPORT(layer_norm)

}  // namespace fd
#endif

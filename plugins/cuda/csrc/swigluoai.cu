#include "fd/activation.cuh"
#include "fd/rowwise.cuh"

namespace fd {

// min(g, limit) sigmoid(alpha g) (clip(u) + 1)
struct SwigluoaiPairs {
  float alpha, limit;
  __device__ __forceinline__ float operator()(float gate, float up) const {
    const float g = gate > limit ? limit : gate;
    return (clamped(up, -limit, limit) + 1.f) * g * sigmoid(alpha * g);
  }
};

// u g sigmoid(clip(alpha g))
struct SwigluoaiHalves {
  float alpha, limit;
  __device__ __forceinline__ float operator()(float gate, float up) const {
    return up * gate * sigmoid(clamped(alpha * gate, -limit, limit));
  }
};

// Even and odd columns: N of 2 N neighbours a thread.
template <typename T, int N>
__global__ void swigluoai_interleaved(const T* x, int64_t x_step, T* out, int64_t out_step,
                                      int64_t width, int64_t chunks, SwigluoaiPairs f) {
  let_next_start();
  wait_for_inputs();
  const auto [row, at] = row_place<N>(chunks);
  if (at >= width) return;
  const Vec<T, 2 * N> in = *reinterpret_cast<const Vec<T, 2 * N>*>(x + row * x_step + 2 * at);
  Vec<T, N> v;
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = from_float<T>(f(to_float(in[2 * i]), to_float(in[2 * i + 1])));
  *reinterpret_cast<Vec<T, N>*>(out + row * out_step + at) = v;
}

// One pair a thread, elements that need no alignment of their own.
template <typename T>
__global__ void swigluoai_interleaved_any(const T* x, int64_t x_step, T* out, int64_t out_step,
                                          int64_t width, int64_t chunks, SwigluoaiPairs f) {
  let_next_start();
  wait_for_inputs();
  const auto [row, at] = row_place<1>(chunks);
  if (at >= width) return;
  const T* in = x + row * x_step + 2 * at;
  out[row * out_step + at] = from_float<T>(f(to_float(in[0]), to_float(in[1])));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/rowwise.h"

namespace fd {

template <typename T>
void swigluoai_launch(const Launch& on, Tensor x, Tensor out, SwigluoaiPairs f) {
  constexpr int N = kPack<T> / 2;
  const int64_t x_step = x.stride(0), out_step = out.stride(0), width = out.size(1);
  const T* px = x.data<T>();
  T* po = out.data<T>();
  const auto start = [&](auto kernel, int each) {
    const RowGrid g = row_grid(out.size(0), width, each);
    run_overlapped(on, kernel, g.grid, g.block, 0, px, x_step, po, out_step, width, g.chunks, f);
  };
  if (packable<T>(2 * width, {x_step, 2 * out_step}, {px}) && aligned16(po))
    start(swigluoai_interleaved<T, N>, N);
  else
    start(swigluoai_interleaved_any<T>, 1);
}

void swigluoai(Tensor x, double alpha, double limit, std::string_view type, Tensor out) {
  const char* op = "swigluoai";
  if (!(limit >= 0)) fail("ValueError", op, ".limit: want >= 0, have ", limit);
  Check{op, "x", x}.rank(2).inner_contiguous();
  if (x.size(1) % 2 != 0)
    fail("ValueError", op, ".x: want an even last dimension, have ", shape_text(x));
  Check{op, "out", out}.rank(2).dim(0, x.size(0)).dim(1, x.size(1) / 2);
  Check{op, "out", out}.same_dtype(x).inner_contiguous();
  const float a = static_cast<float>(alpha), l = static_cast<float>(limit);
  if (type != "interleave") return halves_op(op, x, out, SwigluoaiHalves{a, l});
  same_device(op, x, {out});
  const Launch on = launch_on(op, x);
  dispatch_float(op, "x", x, [&](auto tag) {
    swigluoai_launch<decltype(tag)>(on, x, out, SwigluoaiPairs{a, l});
  });
}
FD_EXPORT(swigluoai)

}  // namespace fd
#endif

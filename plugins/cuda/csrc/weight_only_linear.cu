// A dense layer over weight_quantize's codes: strips of them become plain weights in scratch
// memory. For callers that hold weights in that order; the engine's own methods multiply codes
// (linear_int8.cu).
#include "fd/weight_layout.cuh"

namespace fd {

// Columns [first, first + count) of the weight as rows of `out` [count, depth], rounded to T.
template <typename T>
__global__ void weight_only_linear_unpack(WeightLayout plan, const uint8_t* codes, const T* scales,
                                          int64_t first, int64_t count, T* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count * plan.depth) return;
  const int64_t k = i % plan.depth, n = first + i / plan.depth;
  const float code = static_cast<float>(plan.get(codes, k, n));
  out[i] = from_float<T>(code * to_float(scales[plan.scale(k, n)]));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include <string>

#include "fd/strips.h"
#include "fd/weight_layout.h"

namespace fd {

// x [..., K] and out [..., N], contiguous, as matrices.
struct MatrixView {
  DLTensor view;
  int64_t shape[2];

  MatrixView(const Tensor& t, int64_t width) : view(*t.t), shape{1, width} {
    for (int d = 0; d + 1 < t.ndim(); ++d) shape[0] *= t.size(d);
    view.ndim = 2, view.shape = shape, view.strides = nullptr;
  }
  MatrixView(const MatrixView&) = delete;
};

template <typename T>
void weight_only_linear_run(const Launch& on, const WeightLayout& plan, Tensor x, Tensor weight,
                            OptTensor bias, Tensor scales, Tensor out) {
  for_strips<T>(on, x, bias, out, 1, [&](int64_t first, int64_t count, T* strip) {
    const auto blocks = static_cast<unsigned>((count * plan.depth + 255) / 256);
    run(on, weight_only_linear_unpack<T>, dim3(blocks), dim3(256), 0, plan,
        static_cast<const uint8_t*>(weight.data<uint8_t>()),
        static_cast<const T*>(scales.data<T>()), first, count, strip);
  });
}

void weight_only_linear(Tensor x, Tensor weight, OptTensor bias, OptTensor weight_scale,
                        std::string_view weight_dtype, int64_t arch, int64_t group_size,
                        Tensor out) {
  const char* op = "weight_only_linear";
  if (!weight_scale)
    fail("ValueError", op, ".weight_scale: want the scales of weight_quantize, have None");
  if (x.ndim() == 0) fail("ValueError", op, ".x: want at least one dimension, have none");
  Check{op, "x", x}.contiguous();
  Check{op, "weight", weight}.rank(2);
  const std::string algo = "weight_only_" + std::string(weight_dtype);
  const int64_t columns = weight.size(0) * (weight_dtype == "int4" ? 2 : 1);
  const WeightLayout plan = weight_layout(op, algo, arch, group_size, x.size(-1), columns);
  check_codes(plan, op, "weight", weight, "weight_scale", weight_scale, group_size > 0);
  Check{op, "weight_scale", weight_scale}.same_dtype(x);
  Check{op, "out", out}.rank(x.ndim()).dim(-1, columns).same_dtype(x).contiguous();
  for (int i = 0; i + 1 < x.ndim(); ++i) Check{op, "out", out}.dim(i, x.size(i));
  if (bias) Check{op, "bias", bias}.rank(1).dim(0, columns).same_dtype(x).contiguous();
  dispatch_float(op, "x", x, [](auto) {});
  same_device(op, x, {weight, bias, weight_scale, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  const MatrixView from(x, x.size(-1)), to(out, columns);
  dispatch_float(op, "x", x, [&](auto tag) {
    weight_only_linear_run<decltype(tag)>(on, plan, Tensor{&from.view}, weight, bias, weight_scale,
                                          Tensor{&to.view});
  });
}
FD_EXPORT(weight_only_linear)

}  // namespace fd
#endif

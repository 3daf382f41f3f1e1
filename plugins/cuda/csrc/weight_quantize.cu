#include "fd/weight_layout.cuh"

namespace fd {

// Nearest, ties away from zero; 0 where the scale is none.
__device__ __forceinline__ int weight_quantize_code(float x, float scale, int limit) {
  const bool usable = scale > 0.f && scale < INFINITY;
  if (!usable || x != x) return 0;
  const float code = roundf(__fdiv_rn(x, scale)), most = static_cast<float>(limit);
  return static_cast<int>(fminf(fmaxf(code, -most), most));
}

// A thread has a column's group of k: first its scale.
template <typename T>
__global__ void weight_quantize_scales(const T* x, WeightLayout plan, int64_t groups, T* scales) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= groups * plan.columns) return;
  const int64_t n = i % plan.columns, begin = i / plan.columns * plan.group;
  const int64_t end = min(begin + plan.group, plan.depth);
  uint32_t most = 0;  // magnitudes compare like their bits, NaN above all
  for (int64_t k = begin; k < end; ++k)
    most = max(most, __float_as_uint(to_float(x[k * plan.columns + n])) & 0x7fffffffu);
  scales[i] = from_float<T>(__fdiv_rn(__uint_as_float(most), static_cast<float>(plan.limit)));
}

// A thread writes the byte that holds code (k, n), and with int4 its neighbour's.
template <typename T>
__global__ void weight_quantize_codes(const T* x, WeightLayout plan, const T* scales,
                                      uint8_t* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= plan.depth * plan.columns) return;
  const int64_t k = i / plan.columns, n = i % plan.columns, at = plan.place(k, n);
  const auto stored = [&](int64_t row) {
    const float scale = to_float(scales[plan.scale(row, n)]);
    const float from = to_float(x[row * plan.columns + n]);
    return weight_quantize_code(from, scale, plan.limit) + plan.bias;
  };
  if (!plan.int4)
    out[at] = static_cast<uint8_t>(stored(k));
  else if (at % 2 == 0)  // the upper nibble is that of k + 8
    out[at / 2] = static_cast<uint8_t>(stored(k) | stored(k + 8) << 4);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/weight_layout.h"

namespace fd {

template <typename T>
void weight_quantize_launch(const Launch& on, const WeightLayout& plan, Tensor x, Tensor out,
                            Tensor scale) {
  const auto blocks = [](int64_t n) { return dim3(static_cast<unsigned>((n + 255) / 256)); };
  const int64_t groups = plan.depth > 0 ? plan.groups() : scale.numel() > 0 ? 1 : 0;
  run(on, weight_quantize_scales<T>, blocks(groups * plan.columns), dim3(256), 0,
      static_cast<const T*>(x.data<T>()), plan, groups, scale.data<T>());
  run(on, weight_quantize_codes<T>, blocks(plan.depth * plan.columns), dim3(256), 0,
      static_cast<const T*>(x.data<T>()), plan, static_cast<const T*>(scale.data<T>()),
      out.data<uint8_t>());
}

void weight_quantize(Tensor x, std::string_view algo, int64_t arch, int64_t group_size, Tensor out,
                     Tensor scale) {
  const char* op = "weight_quantize";
  Check{op, "x", x}.rank(2).contiguous();
  const WeightLayout plan = weight_layout(op, algo, arch, group_size, x.size(0), x.size(1));
  check_codes(plan, op, "out", out, "scale", scale, group_size > 0);
  Check{op, "scale", scale}.same_dtype(x);
  same_device(op, x, {out, scale});
  const Launch on = launch_on(op, x);
  dispatch_float(op, "x", x,
                 [&](auto tag) { weight_quantize_launch<decltype(tag)>(on, plan, x, out, scale); });
}
FD_EXPORT(weight_quantize)

}  // namespace fd
#endif

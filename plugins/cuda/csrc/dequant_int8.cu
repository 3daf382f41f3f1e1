#include "fd/norm.cuh"
#include "fd/rowwise.cuh"

namespace fd {

template <typename T, int N>
__global__ void dequant_int8_rows(const int32_t* sums, const float* scale, T* out, int64_t width,
                                  int64_t chunks) {
  let_next_start();
  wait_for_inputs();
  const auto [row, at] = row_place<N>(chunks);
  if (at >= width) return;
  const Vec<int32_t, N> in = *reinterpret_cast<const Vec<int32_t, N>*>(sums + row * width + at);
  const Floats<N, float> by(scale + at);
  Vec<T, N> v;
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = from_float<T>(__int2float_rn(in[i]) * by[i]);
  *reinterpret_cast<Vec<T, N>*>(out + row * width + at) = v;
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/rowwise.h"

namespace fd {

template <typename T>
void dequant_int8_launch(const Launch& on, Tensor input, Tensor out_scale, Tensor output) {
  const int64_t rows = input.size(0), width = input.size(1);
  const int32_t* from = input.data<int32_t>();
  const float* scale = out_scale.data<float>();
  T* to = output.data<T>();
  const auto start = [&](auto kernel, int each) {
    const RowGrid g = row_grid(rows, width, each);
    run_overlapped(on, kernel, g.grid, g.block, 0, from, scale, to, width, g.chunks);
  };
  if (packable<int32_t>(width, {}, {from, scale, to}))
    start(dequant_int8_rows<T, 4>, 4);
  else
    start(dequant_int8_rows<T, 1>, 1);
}

template <typename T>
constexpr const char* kFloatName = std::is_same_v<T, float>  ? "float32"
                                   : std::is_same_v<T, bf16> ? "bfloat16"
                                                             : "float16";

void dequant_int8(Tensor input, Tensor out_scale, std::string_view dtype, Tensor output) {
  const char* op = "dequant_int8";
  Check{op, "input", input}.rank(2).dtype<int32_t>("int32").contiguous();
  Check{op, "out_scale", out_scale}.rank(1).dim(0, input.size(1)).dtype<float>("float32");
  Check{op, "out_scale", out_scale}.contiguous();
  Check{op, "output", output}.same_shape(input).contiguous();
  same_device(op, input, {out_scale, output});
  const Launch on = launch_on(op, input);
  dispatch_float(op, "output", output, [&](auto tag) {
    using T = decltype(tag);
    if (dtype != kFloatName<T>)
      fail("ValueError", op, ".dtype: want that of output, ", kFloatName<T>, ", have ", dtype);
    dequant_int8_launch<T>(on, input, out_scale, output);
  });
}
FD_EXPORT(dequant_int8)

}  // namespace fd
#endif

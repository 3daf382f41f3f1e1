#include "fd/tensor_quant.cuh"

namespace fd {

// What is no floor (NaN, or not above 0) becomes 0, so that the bits of scales order like numbers.
__global__ void dynamic_scaled_fp8_quant_floor(float* scale) {
  let_next_start();
  wait_for_inputs();
  if (!(*scale > 0.f)) *scale = 0.f;
}

// A maximum of integers is the same in every order.
template <typename T, int N>
__global__ void dynamic_scaled_fp8_quant_largest(const T* x, int64_t count, float* scale) {
  __shared__ float scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  const int64_t part = (count / N + gridDim.x - 1) / gridDim.x * N, first = blockIdx.x * part;
  const int64_t n = min(part, count - first);
  const float mine = n > 0 ? largest_of<T, N>(x + first, n, threadIdx.x, blockDim.x) : 0.f;
  const float most = block_reduce<Max>(mine, scratch);
  if (threadIdx.x == 0)
    atomicMax(reinterpret_cast<int*>(scale), __float_as_int(__fdiv_rn(most, kE4m3Largest)));
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/tensor_quant.h"

namespace fd {

template <typename T>
void dynamic_scaled_fp8_quant_scale(const Launch& on, Tensor input, float* scale) {
  const T* from = input.data<T>();
  const int64_t count = input.numel(), most = 4 * on.processors();
  run_overlapped(on, dynamic_scaled_fp8_quant_floor, dim3(1), dim3(1), 0, scale);
  if (packable<T>(count, {}, {from}))
    run_overlapped(on, dynamic_scaled_fp8_quant_largest<T, kPack<T>>,
                   dim3(std::min(most, (count / kPack<T> + 255) / 256)), dim3(256), 0, from, count,
                   scale);
  else
    run_overlapped(on, dynamic_scaled_fp8_quant_largest<T, 1>,
                   dim3(std::min(most, (count + 255) / 256)), dim3(256), 0, from, count, scale);
}

void dynamic_scaled_fp8_quant(Tensor out, Tensor input, Tensor scale) {
  const char* op = "dynamic_scaled_fp8_quant";
  check_tensor_quant(op, out, input, scale);
  const Launch on = launch_on(op, input);
  dispatch_float(op, "input", input, [&](auto tag) {
    dynamic_scaled_fp8_quant_scale<decltype(tag)>(on, input, scale.data<float>());
    tensor_quant_launch<decltype(tag)>(on, input, scale, out);
  });
}
FD_EXPORT(dynamic_scaled_fp8_quant)

}  // namespace fd
#endif

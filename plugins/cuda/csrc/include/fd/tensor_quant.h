// Host side of the quantisers with one scale for a tensor.
#pragma once
#include "fd/fp8.h"
#include "fd/rowwise.h"
#include "fd/tensor_quant.cuh"

namespace fd {

inline void check_tensor_quant(const char* op, Tensor out, Tensor input, Tensor scale) {
  Check{op, "input", input}.contiguous();
  Check{op, "out", out}.same_shape(input).dtype<e4m3>("float8_e4m3fn").contiguous();
  Check{op, "scale", scale}.numel(1).dtype<float>("float32");
  same_device(op, input, {out, scale});
}

template <typename T>
void tensor_quant_launch(const Launch& on, Tensor input, Tensor scale, Tensor out) {
  const T* from = input.data<T>();
  e4m3* to = out.data<e4m3>();
  const int64_t count = input.numel();
  const bool packs =
      packable<T>(count, {}, {from}) && reinterpret_cast<uintptr_t>(to) % kPack<T> == 0;
  const int64_t items = packs ? count / kPack<T> : count;
  const dim3 grid((items + 255) / 256), block(256);
  const float* value = scale.data<float>();
  if (packs)
    run_overlapped(on, tensor_quant_encode<T, kPack<T>>, grid, block, 0, from, count, value, to);
  else
    run_overlapped(on, tensor_quant_encode<T, 1>, grid, block, 0, from, count, value, to);
}

}  // namespace fd

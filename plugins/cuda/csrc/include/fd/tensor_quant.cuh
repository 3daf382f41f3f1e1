// A whole tensor to float8 under one scale.
#pragma once
#include "fd/fp8_rows.cuh"

namespace fd {

// x * (1 / scale); N elements a thread.
template <typename T, int N>
__global__ void tensor_quant_encode(const T* x, int64_t count, const float* scale, e4m3* to) {
  let_next_start();
  wait_for_inputs();
  const float times = inverse(*scale);
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  encode<T, N>(x + at, min(int64_t{N}, count - at), to + at, 0, 1,
               [=](float v) { return __fmul_rn(v, times); });
}

}  // namespace fd

// Rows of floats as int8 codes with a scale each.
#pragma once
#include "fd/overlap.cuh"
#include "fd/reduce.cuh"

namespace fd {

// codes [rows, depth], scales [rows] = largest magnitude / 127; a block has a row. Codes are the
// nearest, ties to even. A row that is not finite: scale NaN.
template <typename T>
__global__ void __launch_bounds__(256)
    int8_rows(const T* from, int64_t step, int64_t depth, int8_t* codes, float* scales) {
  __shared__ float scratch[kWarp];
  const T* row = from + blockIdx.x * step;
  let_next_start();
  wait_for_inputs();
  float most = 0.f, wrong = 0.f;
  for (int64_t k = threadIdx.x; k < depth; k += blockDim.x) {
    const float x = to_float(row[k]);
    most = fmaxf(most, fabsf(x));
    if (!(fabsf(x) < INFINITY)) wrong = 1.f;
  }
  most = block_reduce<Max>(most, scratch);
  __syncthreads();
  wrong = block_reduce<Max>(wrong, scratch);
  const float to_code = wrong == 0.f && most > 0.f ? 127.f / most : 0.f;
  if (threadIdx.x == 0)
    scales[blockIdx.x] = wrong > 0.f ? __int_as_float(0x7fffffff) : most / 127.f;
  int8_t* to = codes + blockIdx.x * depth;
  for (int64_t k = threadIdx.x; k < depth; k += blockDim.x) {
    const float code = to_code > 0.f ? rintf(to_float(row[k]) * to_code) : 0.f;
    to[k] = static_cast<int8_t>(fminf(fmaxf(code, -127.f), 127.f));
  }
}

}  // namespace fd

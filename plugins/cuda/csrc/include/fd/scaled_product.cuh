// Products of quantised matrices: sums brought back by scales of rows and columns.
#pragma once
#include "fd/any_float.cuh"

namespace fd {

// out[m, n] = rows[m] * (columns[n] * sum) + bias[n]; a step of 0: one scale for all.
struct ScaledSink {
  LinearSink to;
  const float* rows;
  const float* columns;
  int64_t row_step, column_step;

  template <typename Sum>
  __device__ __forceinline__ void put(int64_t m, int64_t n, Sum sum) const {
    // Not joined with the bias: the bits are every kernel's.
    const float column = __fmul_rn(columns[n * column_step], static_cast<float>(sum));
    to.put(m, n, __fmul_rn(rows[m * row_step], column));
  }
};

// The sink's work on sums [rows, columns] that a library left in memory, from row m0 of the output
// on.
template <typename Sum>
__global__ void scaled_product_finish(const Sum* sums, int64_t rows, int64_t columns, int64_t m0,
                                      ScaledSink sink) {
  const int64_t total = rows * columns, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += step)
    sink.put(m0 + i / columns, i % columns, sums[i]);
}

}  // namespace fd

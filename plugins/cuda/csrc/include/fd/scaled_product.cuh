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

  static constexpr int kParts = 1;
  using Column = float;
  __device__ __forceinline__ Column column(int64_t n) const { return columns[n * column_step]; }
  __device__ __forceinline__ void early(Column& to, int64_t, int64_t n) const { to = column(n); }

  // Not joined with the bias: the bits are every kernel's.
  template <typename Sum>
  __device__ __forceinline__ float scaled(int64_t m, Sum sum, Column column) const {
    return __fmul_rn(rows[m * row_step], __fmul_rn(column, static_cast<float>(sum)));
  }
  template <typename Sum>
  __device__ __forceinline__ void put(int64_t m, int64_t n, Sum sum, Column column) const {
    to.put(m, n, scaled(m, sum, column));
  }
  template <typename Sum>
  __device__ __forceinline__ void put(int64_t m, int64_t n, Sum sum) const {
    put(m, n, sum, column(n));
  }
};

// The sink's work on sums [rows, columns] that a library left in memory, from row m0 of the output
// on; V neighbours a thread, where V = 4 the output at 8-byte boundaries.
template <typename Sum, int V>
__global__ void __launch_bounds__(256)
    scaled_product_finish(const Sum* sums, int64_t rows, int64_t columns, int64_t m0,
                          ScaledSink sink) {
  const int64_t n = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V;
  if (n >= columns) return;
  Vec<float, V> scale, shift;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    scale[i] = sink.column(n + i);
    shift[i] = sink.to.bias == nullptr ? 0.f : load_any(sink.to.bias, sink.to.bias_kind, n + i);
  }
  for (int64_t m = blockIdx.y; m < rows; m += gridDim.y) {
    const Vec<Sum, V> all = *reinterpret_cast<const Vec<Sum, V>*>(sums + m * columns + n);
    Vec<float, V> y;
#pragma unroll
    for (int i = 0; i < V; ++i) y[i] = sink.scaled(m0 + m, all[i], scale[i]);
    if (sink.to.bias != nullptr)
#pragma unroll
      for (int i = 0; i < V; ++i) y[i] += shift[i];
    store_any(sink.to.out, sink.to.out_kind, (m0 + m) * sink.to.step + n, y);
  }
}

}  // namespace fd

// y = x W^T in float32 arithmetic on any architecture, any float types, strides and alignment.
//
// K is cut into kSlices ranges; within one, products are added in the order of k, and the ranges'
// sums in theirs. Both kernels do so: a row's result does not depend on how many there are.
#pragma once
#include "fd/any_float.cuh"

namespace fd {

constexpr int kSlices = 8, kSliceUnit = 32;

__host__ __device__ constexpr int64_t slice_length(int64_t depth) {
  const int64_t each = (depth + kSlices - 1) / kSlices;
  return (each + kSliceUnit - 1) / kSliceUnit * kSliceUnit;
}

// x [rows, depth] and W [columns, depth]; strides in elements. `packed`: W can be read in 16 bytes.
template <typename X, typename W>
struct PlainLinear {
  const X* x;
  const W* w;
  int64_t x_step, w_step, rows, columns, depth;
  bool packed;
};

constexpr int kFewRows = 8, kFewColumns = 32, kFewChunk = 32;

// A lane's next kFewChunk elements of its row of W, zeros from `left` on.
template <typename W>
__device__ __forceinline__ void plain_chunk(float (&to)[kFewChunk], const W* from, int64_t left,
                                            bool packed) {
  constexpr int N = kPack<W>;
  if (packed && left >= kFewChunk) {
    Vec<W, N> held[kFewChunk / N];
#pragma unroll
    for (int v = 0; v < kFewChunk / N; ++v)
      held[v] = *reinterpret_cast<const Vec<W, N>*>(from + v * N);
#pragma unroll
    for (int i = 0; i < kFewChunk; ++i) to[i] = to_float(held[i / N][i % N]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kFewChunk; ++i) to[i] = i < left ? to_float(from[i]) : 0.f;
}

// A block has 32 columns (a lane each) and up to R rows; each of its eight warps has a slice of K.
template <typename X, typename W, int R>
__global__ void __launch_bounds__(32 * kSlices)
    linear_few_rows(PlainLinear<X, W> job, LinearSink sink) {
  __shared__ __align__(16) float shared_x[kSlices][R][kFewChunk];
  __shared__ float sums[kSlices][R][kFewColumns];
  const int slice = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t n = int64_t{blockIdx.x} * kFewColumns + lane, m0 = int64_t{blockIdx.y} * R;
  const int64_t begin = slice * slice_length(job.depth);
  const int64_t end = min(begin + slice_length(job.depth), job.depth);
  const W* row = job.w + (n < job.columns ? n : 0) * job.w_step;
  float sum[R] = {};
  for (int64_t k = begin; k < end; k += kFewChunk) {
    const bool inside = k + lane < end;
#pragma unroll
    for (int m = 0; m < R; ++m)
      shared_x[slice][m][lane] =
          inside && m0 + m < job.rows ? to_float(job.x[(m0 + m) * job.x_step + k + lane]) : 0.f;
    float w[kFewChunk];
    plain_chunk(w, row + k, end - k, job.packed);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kFewChunk; ++i)
#pragma unroll
      for (int m = 0; m < R; ++m) sum[m] = fmaf(shared_x[slice][m][i], w[i], sum[m]);
    __syncwarp();
  }
#pragma unroll
  for (int m = 0; m < R; ++m) sums[slice][m][lane] = sum[m];
  __syncthreads();
  const int m = threadIdx.x / kFewColumns;
  if (m >= R || m0 + m >= job.rows || n >= job.columns) return;
  float total = 0.f;
#pragma unroll
  for (int s = 0; s < kSlices; ++s) total += sums[s][m][lane];
  sink.put(m0 + m, n, total);
}

constexpr int kPlainTile = 64, kPlainDepth = 16, kPlainPad = 4;

// Columns [k, k + kPlainDepth) of 64 rows from `first` on, transposed, zeros outside.
template <typename T>
__device__ __forceinline__ void plain_tile(float (*to)[kPlainTile + kPlainPad], const T* from,
                                           int64_t step, int64_t first, int64_t rows, int64_t k,
                                           int64_t end) {
  const int j = threadIdx.x % kPlainDepth;
#pragma unroll
  for (int r = threadIdx.x / kPlainDepth; r < kPlainTile; r += 256 / kPlainDepth) {
    const bool inside = first + r < rows && k + j < end;
    to[j][r] = inside ? to_float(from[(first + r) * step + k + j]) : 0.f;
  }
}

// 64 x 64 outputs a block of 256 threads, 4 x 4 each.
template <typename X, typename W>
__global__ void __launch_bounds__(256) linear_tiles(PlainLinear<X, W> job, LinearSink sink) {
  __shared__ __align__(16) float xs[kPlainDepth][kPlainTile + kPlainPad];
  __shared__ __align__(16) float ws[kPlainDepth][kPlainTile + kPlainPad];
  const int64_t n0 = int64_t{blockIdx.x} * kPlainTile, m0 = int64_t{blockIdx.y} * kPlainTile;
  const int tx = threadIdx.x % 16 * 4, ty = threadIdx.x / 16 * 4;
  float total[4][4] = {};
  for (int s = 0; s < kSlices; ++s) {
    const int64_t begin = s * slice_length(job.depth);
    const int64_t end = min(begin + slice_length(job.depth), job.depth);
    float sum[4][4] = {};
    for (int64_t k = begin; k < end; k += kPlainDepth) {
      __syncthreads();
      plain_tile(xs, job.x, job.x_step, m0, job.rows, k, end);
      plain_tile(ws, job.w, job.w_step, n0, job.columns, k, end);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kPlainDepth; ++j) {
        const Vec<float, 4> a = *reinterpret_cast<const Vec<float, 4>*>(&xs[j][ty]);
        const Vec<float, 4> b = *reinterpret_cast<const Vec<float, 4>*>(&ws[j][tx]);
#pragma unroll
        for (int i = 0; i < 16; ++i)
          sum[i / 4][i % 4] = fmaf(a[i / 4], b[i % 4], sum[i / 4][i % 4]);
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) total[i / 4][i % 4] += sum[i / 4][i % 4];
  }
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (m0 + ty + i / 4 < job.rows && n0 + tx + i % 4 < job.columns)
      sink.put(m0 + ty + i / 4, n0 + tx + i % 4, total[i / 4][i % 4]);
}

}  // namespace fd

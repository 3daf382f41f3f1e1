// y = x W^T on tensor cores for any number of rows (sm_80 and newer), where no library does it.
//
// A block has 128 rows of W and 64 of x. Products are added in the order of skinny.cuh: within each
// eighth of K in sequence, then the eighths: the bits of a row are the same from either kernel.
#pragma once
#include "fd/any_float.cuh"
#include "fd/mma.cuh"
#include "fd/skinny.cuh"

namespace fd {

constexpr int kTensorColumns = 128, kTensorRows = 64, kTensorDepth = 32, kTensorStages = 4;
constexpr int kTensorUnits = (kTensorColumns + kTensorRows) * 4;  // of 16 bytes, in a stage

// x [rows, depth] and w [columns, depth]; strides in elements; depth a multiple of 8.
template <typename T>
struct TensorTiles {
  const T* x;
  const T* w;
  int64_t x_step, w_step, rows, columns, depth;
};

// Depth [k, k + 32) of `count` rows from `first` on, one row after another.
template <int Count, typename T>
__device__ __forceinline__ void tensor_fetch(uint4* to, const T* from, int64_t step, int64_t first,
                                             int64_t rows, int64_t k, int64_t depth) {
#pragma unroll
  for (int i = threadIdx.x; i < Count * 4; i += 256) {
    const int64_t row = first + i / 4, at = k + i % 4 * 8;
    const bool inside = row < rows && at < depth;
    copy_async16(to + i, inside ? from + row * step + at : from, inside ? 16 : 0);
  }
}

template <typename T>
__device__ __forceinline__ void tensor_stage(uint4* to, const TensorTiles<T>& job, int64_t n0,
                                             int64_t m0, int64_t k) {
  if (k >= job.depth) return;
  tensor_fetch<kTensorColumns>(to, job.w, job.w_step, n0, job.columns, k, job.depth);
  tensor_fetch<kTensorRows>(to + kTensorColumns * 4, job.x, job.x_step, m0, job.rows, k, job.depth);
}

// A warp's 32 x 32 outputs: two tiles of 16 along n, four of 8 along m.
template <typename T>
using TensorSums = typename SumOf<T>::type[2][4][4];

template <typename T>
__device__ __forceinline__ void tensor_multiply(TensorSums<T>& sum, const uint4* w, const uint4* x,
                                                int lane) {
  uint4 b[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) b[j] = x[(8 * j + lane / 4) * 4 + lane % 4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 top = w[(16 * i + lane / 4) * 4 + lane % 4];
    const uint4 bottom = w[(16 * i + 8 + lane / 4) * 4 + lane % 4];
    const uint32_t low[4] = {top.x, bottom.x, top.y, bottom.y};
    const uint32_t high[4] = {top.z, bottom.z, top.w, bottom.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t first[2] = {b[j].x, b[j].y}, second[2] = {b[j].z, b[j].w};
      mma_16x8x16<T>(sum[i][j], low, first);
      mma_16x8x16<T>(sum[i][j], high, second);
    }
  }
}

// How sums of `length` steps of k come onto the total: as they are.
struct PlainFold {
  int64_t length;
  template <typename Sum>
  __device__ __forceinline__ Sum scaled(Sum sum, int64_t, int64_t, int64_t) const {
    return sum;
  }
};

// Under a scale for each row of x and block, [rows, blocks], and one for each block and 128 rows of
// W, [blocks, ceil(columns / 128)].
struct BlockFold {
  int64_t length;
  const float* x_scales;
  const float* w_scales;
  int64_t rows, columns, x_step, w_step;
  __device__ __forceinline__ float scaled(float sum, int64_t block, int64_t m, int64_t n) const {
    if (m >= rows || n >= columns) return 0.f;
    return sum * (x_scales[m * x_step + block] * w_scales[block * w_step + n / 128]);
  }
};

// `n`, `m`: this lane's first row of W and of x.
template <typename Sum, typename Fold>
__device__ __forceinline__ void tensor_add(Sum (&total)[2][4][4], Sum (&sum)[2][4][4],
                                           const Fold& fold, int64_t part, int64_t n, int64_t m) {
#pragma unroll
  for (int e = 0; e < 32; ++e) {
    const int i = e / 16, j = e / 4 % 4, c = e % 4;
    total[i][j][c] += fold.scaled(sum[i][j][c], part, m + 8 * j + c % 2, n + 16 * i + c / 2 * 8);
    sum[i][j][c] = 0;
  }
}

template <typename Sum, typename Sink>
__device__ __forceinline__ void tensor_store(const Sum (&total)[2][4][4], int64_t n, int64_t m,
                                             int64_t columns, int64_t rows, const Sink& sink) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t row = m + 8 * j + c % 2, column = n + 16 * i + c / 2 * 8;
        if (row < rows && column < columns) sink.put(row, column, total[i][j][c]);
      }
}

template <typename T, typename Fold, typename Sink>
__global__ void __launch_bounds__(256, 2)
    linear_tensor_tiles(TensorTiles<T> job, Fold fold, Sink sink) {
#if FD_SM80
  extern __shared__ uint4 tensor_ring[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wn = warp % 4 * 32, wm = warp / 4 * 32;
  const int64_t n0 = int64_t{blockIdx.y} * kTensorColumns, m0 = int64_t{blockIdx.x} * kTensorRows;
#pragma unroll
  for (int i = 0; i < kTensorStages - 1; ++i) {
    tensor_stage(tensor_ring + i * kTensorUnits, job, n0, m0, int64_t{i} * kTensorDepth);
    copy_async_commit();
  }
  TensorSums<T> total = {}, sum = {};
  int at = 0, next = kTensorStages - 1;
  const int64_t n = n0 + wn + lane / 4, m = m0 + wm + lane % 4 * 2;
  int64_t left = fold.length, part = 0;
  for (int64_t k = 0; k < job.depth; k += kTensorDepth) {
    copy_async_wait<kTensorStages - 2>();
    __syncthreads();
    tensor_stage(tensor_ring + next * kTensorUnits, job, n0, m0,
                 k + (kTensorStages - 1) * kTensorDepth);
    copy_async_commit();
    const uint4* stage = tensor_ring + at * kTensorUnits;
    tensor_multiply<T>(sum, stage + wn * 4, stage + (kTensorColumns + wm) * 4, lane);
    left -= kTensorDepth;
    if (left == 0) tensor_add(total, sum, fold, part++, n, m), left = fold.length;
    at = (at + 1) % kTensorStages, next = (next + 1) % kTensorStages;
  }
  if (left < fold.length) tensor_add(total, sum, fold, part, n, m);
  copy_async_wait<0>();
  tensor_store(total, n, m, job.columns, job.rows, sink);
#endif
}

}  // namespace fd

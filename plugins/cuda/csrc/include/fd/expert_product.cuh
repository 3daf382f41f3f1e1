// Rows of experts times their matrices [depth, columns] on tensor cores (sm_80 and newer).
//
// Each output is summed over k in steps of 16 from the first to the last whatever the tile, so that
// a row's result does not depend on how many rows there are.
#pragma once
#include "fd/activation.cuh"
#include "fd/expert_tiles.cuh"
#include "fd/mma.cuh"

namespace fd {

// y[r] = x[r] W[e(r)], or, `Gated`, silu(g) * u with [g, u] = x[r] W[e(r)] + bias[e(r)].
template <typename T>
struct ExpertProduct {
  ExpertRows rows;
  const T* x;     // [rows, depth]
  const T* w;     // [experts, depth, columns]
  const T* bias;  // [experts, columns] or null
  int64_t depth, columns;
  T* out;  // [rows, columns], or [rows, columns / 2]
};

// Warps: kDown x kAcross; a tile of kHeight x kWidth outputs, kDepth of k at a time, kStages ahead.
template <int Height, int Width, int Down, int Across, int Stages>
struct ProductShape {
  static constexpr int kHeight = Height, kWidth = Width, kDown = Down, kAcross = Across;
  static constexpr int kStages = Stages, kDepth = 64, kThreads = Down * Across * kWarp;
  static constexpr int kRowTiles = Height / Down / 16, kColumnTiles = Width / Across / 8;
  static constexpr int kRowUnits = kDepth / 8, kColumnUnits = Width / 8;  // of 16 bytes
  static constexpr int kUnits = Height * kRowUnits + kDepth * kColumnUnits;
  static constexpr int kShared = Stages * kUnits * 16;
};

// Units of a row of eight lie where the eight lanes that read them together meet all banks.
__device__ __forceinline__ int swizzled(int row, int unit, int units) {
  return row * units + (unit ^ (row & 7));
}

template <typename T, typename Shape, bool Gated>
struct ProductBlock {
  static constexpr int kHalf = Shape::kWidth / 2;
  const ExpertProduct<T>& job;
  const ExpertTile& tile;
  uint4* shared;
  int64_t n0;  // first column of the tile, of a half where Gated

  __device__ __forceinline__ uint4* x_units(int stage) const {
    return shared + stage * Shape::kUnits;
  }
  __device__ __forceinline__ uint4* w_units(int stage) const {
    return x_units(stage) + Shape::kHeight * Shape::kRowUnits;
  }
  // The column of W behind column `c` of the tile; -1 beyond the last.
  __device__ __forceinline__ int64_t column(int c) const {
    const int64_t limit = Gated ? job.columns / 2 : job.columns;
    const int64_t n = n0 + (Gated ? c % kHalf : c);
    return n >= limit ? -1 : Gated && c >= kHalf ? limit + n : n;
  }

  // Copies k0 .. k0 + kDepth - 1 of the tile's rows and columns. `x` and `w`: the thread's own
  // units at k = 0; the ones that it copies besides lie a fixed number of rows apart.
  __device__ __forceinline__ void fetch(int stage, int64_t k0, const T* x, const T* w) const {
    constexpr int kRowsApart = Shape::kThreads / Shape::kRowUnits;
    constexpr int kDepthApart = Shape::kThreads / Shape::kColumnUnits;
    const int row = threadIdx.x / Shape::kRowUnits, unit = threadIdx.x % Shape::kRowUnits;
    const int left = static_cast<int>(min(tile.used - tile.first, int64_t{Shape::kHeight})) - row;
    const bool deep = k0 + unit * 8 < job.depth;
    uint4* to = x_units(stage);
#pragma unroll
    for (int j = 0; j < Shape::kHeight / kRowsApart; ++j) {
      const bool inside = deep && j * kRowsApart < left;
      copy_async16(to + swizzled(row + j * kRowsApart, unit, Shape::kRowUnits),
                   inside ? x + k0 + j * kRowsApart * job.depth : job.x, inside ? 16 : 0);
    }
    to = w_units(stage);
    const int k = threadIdx.x / Shape::kColumnUnits, column = threadIdx.x % Shape::kColumnUnits;
    const int64_t below = w != nullptr ? job.depth - k0 - k : 0;
    const T* from = w + k0 * job.columns;
#pragma unroll
    for (int j = 0; j < Shape::kDepth / kDepthApart; ++j) {
      const bool inside = j * kDepthApart < below;
      copy_async16(to + swizzled(k + j * kDepthApart, column, Shape::kColumnUnits),
                   inside ? from + j * kDepthApart * job.columns : job.w, inside ? 16 : 0);
    }
  }

  __device__ __forceinline__ const T* own_rows() const {
    const int64_t row = tile.first + threadIdx.x / Shape::kRowUnits;
    return job.x + row * job.depth + threadIdx.x % Shape::kRowUnits * 8;
  }
  // Null where the thread's columns lie beyond the last.
  __device__ __forceinline__ const T* own_columns() const {
    const int64_t n = column(threadIdx.x % Shape::kColumnUnits * 8);
    const int64_t k = tile.expert * job.depth + threadIdx.x / Shape::kColumnUnits;
    return n < 0 ? nullptr : job.w + k * job.columns + n;
  }

  // First column in the tile of a warp's column tile `j`: where Gated, its first half are gates and
  // its second half what they gate.
  static __device__ __forceinline__ int tile_column(int j, int across) {
    constexpr int kEach = Shape::kColumnTiles / 2;
    if (!Gated) return (across * Shape::kColumnTiles + j) * 8;
    return (j >= kEach ? kHalf : 0) + (across * kEach + j % kEach) * 8;
  }

  __device__ __forceinline__ void multiply(
      int stage, float (&sums)[Shape::kRowTiles][Shape::kColumnTiles][4]) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int down = warp / Shape::kAcross, across = warp % Shape::kAcross;
    const uint32_t xs = shared_address(x_units(stage)), ws = shared_address(w_units(stage));
#pragma unroll
    for (int k = 0; k < Shape::kDepth / 16; ++k) {
      uint32_t a[Shape::kRowTiles][4];
#pragma unroll
      for (int i = 0; i < Shape::kRowTiles; ++i) {
        const int row = (down * Shape::kRowTiles + i) * 16 + lane % 16;
        load_matrix_x4(a[i], xs + swizzled(row, 2 * k + lane / 16, Shape::kRowUnits) * 16);
      }
#pragma unroll
      for (int j = 0; j < Shape::kColumnTiles; j += 2) {
        const int row = k * 16 + lane % 16;
        const int unit = tile_column(j + lane / 16, across) / 8;
        uint32_t b[4];
        load_matrix_x4_transposed(b, ws + swizzled(row, unit, Shape::kColumnUnits) * 16);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int i = 0; i < Shape::kRowTiles; ++i) {
          mma_16x8x16<T>(sums[i][j], a[i], first);
          mma_16x8x16<T>(sums[i][j + 1], a[i], second);
        }
      }
    }
  }

  __device__ __forceinline__ float shift(int64_t n) const {
    return job.bias != nullptr ? to_float(job.bias[tile.expert * job.columns + n]) : 0.f;
  }
  // silu(g) * u, all rounded.
  __device__ __forceinline__ float gated(float gate, float value, int64_t n) const {
    const float g = to_float(from_float<T>(gate + shift(n)));
    const float u = to_float(from_float<T>(value + shift(job.columns / 2 + n)));
    return silu_of(g) * u;
  }

  __device__ __forceinline__ void store(
      const float (&sums)[Shape::kRowTiles][Shape::kColumnTiles][4]) const {
    constexpr int kOut = Gated ? Shape::kColumnTiles / 2 : Shape::kColumnTiles;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int down = warp / Shape::kAcross, across = warp % Shape::kAcross;
    const int64_t width = Gated ? job.columns / 2 : job.columns;
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i)
#pragma unroll
      for (int j = 0; j < kOut; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t r = tile.first + (down * Shape::kRowTiles + i) * 16 + lane / 4 + 8 * h;
          const int64_t n = n0 + tile_column(j, across) + lane % 4 * 2;
          if (r >= tile.end || n >= width) continue;
          float y[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float sum = sums[i][j][2 * h + c];
            y[c] = Gated ? gated(sum, sums[i][j + (Gated ? kOut : 0)][2 * h + c], n + c) : sum;
          }
          *reinterpret_cast<uint32_t*>(job.out + r * width + n) =
              r < tile.used ? pack2<T>(y[0], y[1]) : 0u;
        }
  }
};

template <typename T, typename Shape, bool Gated>
__global__ void __launch_bounds__(Shape::kThreads, 2) moe_expert_product(ExpertProduct<T> job) {
  extern __shared__ uint4 product_memory[];
  wait_for_inputs();
  const ExpertTile tile = find_tile(job.rows, blockIdx.y, Shape::kHeight);
  if (tile.expert < 0) return;
  constexpr int kColumns = Gated ? Shape::kWidth / 2 : Shape::kWidth;
  const ProductBlock<T, Shape, Gated> block{job, tile, product_memory,
                                            int64_t{blockIdx.x} * kColumns};
  float sums[Shape::kRowTiles][Shape::kColumnTiles][4] = {};
  const int steps = tile.first < tile.used
                        ? static_cast<int>((job.depth + Shape::kDepth - 1) / Shape::kDepth)
                        : 0;
  const T *x = block.own_rows(), *w = block.own_columns();
#pragma unroll
  for (int s = 0; s < Shape::kStages - 1; ++s) {
    if (s < steps) block.fetch(s, int64_t{s} * Shape::kDepth, x, w);
    copy_async_commit();
  }
  for (int s = 0; s < steps; ++s) {
    copy_async_wait<Shape::kStages - 2>();
    __syncthreads();
    const int next = s + Shape::kStages - 1;
    if (next < steps) block.fetch(next % Shape::kStages, int64_t{next} * Shape::kDepth, x, w);
    copy_async_commit();
    block.multiply(s % Shape::kStages, sums);
  }
  block.store(sums);
}

}  // namespace fd

// Which rows of which expert a block of a grouped product works on.
#pragma once
#include "fd/overlap.cuh"
#include "fd/reduce.cuh"

namespace fd {

// Rows sorted by expert with inclusive sums of their numbers, or (`counts`) `capacity` rows for
// each expert, of which the first so many are in use. Values that only the device sees are clipped.
struct ExpertRows {
  const int64_t* numbers;  // [experts]
  int experts;
  int64_t rows, capacity;  // of all; of an expert, where `counts`
  bool counts;

  __device__ __forceinline__ int64_t sum(int e) const {
    return e < 0 ? 0 : e >= experts ? rows : min(max(numbers[e], int64_t{0}), rows);
  }
};

// Rows [first, used) of `expert` to compute, [used, end) to clear; `expert` -1: nothing to do.
struct ExpertTile {
  int expert;
  int64_t first, used, end;
};

// Tiles of `height` rows that there can be; host and device agree.
__host__ __device__ inline int64_t expert_tiles(const ExpertRows& rows, int height) {
  if (rows.counts) return rows.experts * ((rows.capacity + height - 1) / height);
  const int64_t ragged = rows.experts + 1 < rows.rows ? rows.experts + 1 : rows.rows;
  return rows.rows / height + ragged;
}

// By every lane of a warp. Rows that belong to no expert come last.
__device__ __forceinline__ ExpertTile find_tile(const ExpertRows& rows, int64_t tile, int height) {
  if (rows.counts) {
    const int64_t each = (rows.capacity + height - 1) / height;
    const int e = static_cast<int>(tile / each);
    const int64_t start = e * rows.capacity, first = start + tile % each * height;
    const int64_t used = start + min(max(rows.numbers[e], int64_t{0}), rows.capacity);
    return {e, first, used, min(first + height, start + rows.capacity)};
  }
  int64_t before = 0;
  for (int base = 0; base <= rows.experts; base += kWarp) {
    const int e = base + static_cast<int>(threadIdx.x) % kWarp;
    const int64_t begin = rows.sum(e - 1);
    const int64_t end = e <= rows.experts ? max(rows.sum(e), begin) : begin;
    const int64_t own = (end - begin + height - 1) / height;
    int64_t sum = own;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const int64_t below = __shfl_up_sync(0xffffffffu, sum, d);
      if (static_cast<int>(threadIdx.x) % kWarp >= d) sum += below;
    }
    const int64_t start = before + sum - own;
    const unsigned hit = __ballot_sync(0xffffffffu, tile >= start && tile < start + own);
    before = __shfl_sync(0xffffffffu, before + sum, kWarp - 1);
    if (hit == 0) continue;
    const int source = __ffs(hit) - 1;
    const int64_t first = __shfl_sync(0xffffffffu, begin + (tile - start) * height, source);
    const int64_t last = __shfl_sync(0xffffffffu, end, source);
    const int expert = base + source;
    const int64_t used = expert < rows.experts ? last : first;
    return {expert < rows.experts ? expert : 0, first, used, min(first + height, last)};
  }
  return {-1, 0, 0, 0};
}

}  // namespace fd

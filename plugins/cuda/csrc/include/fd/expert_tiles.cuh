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
  constexpr int kEach = 8;  // adjacent experts of a lane, whose loads run together
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int64_t before = 0;
  for (int base = 0; base <= rows.experts; base += kWarp * kEach) {
    const int first = base + lane * kEach;
    int64_t begins[kEach + 1], own = 0;
#pragma unroll
    for (int i = 0; i <= kEach; ++i) begins[i] = rows.sum(min(first + i - 1, rows.experts));
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      begins[i + 1] = max(begins[i + 1], begins[i]);
      own += (begins[i + 1] - begins[i] + height - 1) / height;
    }
    int64_t sum = own;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const int64_t below = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += below;
    }
    int64_t left = tile - (before + sum - own);
    const unsigned hit = __ballot_sync(0xffffffffu, left >= 0 && left < own);
    before = __shfl_sync(0xffffffffu, before + sum, kWarp - 1);
    if (hit == 0) continue;
    int expert = 0;
    int64_t start = 0, last = 0;
    bool open = true;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t tiles = (begins[i + 1] - begins[i] + height - 1) / height;
      const bool here = open && left < tiles;
      if (here) expert = first + i, start = begins[i] + left * height, last = begins[i + 1];
      open = open && !here;
      left -= tiles;
    }
    const int source = __ffs(hit) - 1;
    expert = __shfl_sync(0xffffffffu, expert, source);
    start = __shfl_sync(0xffffffffu, start, source);
    last = __shfl_sync(0xffffffffu, last, source);
    const bool owned = expert < rows.experts;
    return {owned ? expert : 0, start, owned ? last : start, min(start + height, last)};
  }
  return {-1, 0, 0, 0};
}

}  // namespace fd

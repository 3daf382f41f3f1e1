// Experts' rows in groups, listed once by every block that stays and takes many of them.
#pragma once
#include "fd/expert_tiles.cuh"

namespace fd {

// Rows of an expert from `first` on: `left` of them, of which a group has as many as fit; it is the
// expert's group number `index`.
struct RowGroup {
  int first, expert, index, left;
};

// Groups that there can be.
__host__ __device__ inline int64_t most_groups(const ExpertRows& rows, int each) {
  const int64_t used = rows.experts < rows.rows ? rows.experts : rows.rows;
  return (rows.rows + (each - 1) * used) / each;
}

// The groups of up to `each` rows of all experts, in order, in shared memory with room for `room`;
// returns their number. By all of the block's `Threads`.
template <int Threads>
__device__ __forceinline__ int list_groups(const ExpertRows& rows, int each, int room,
                                           RowGroup* to) {
  __shared__ int sums[Threads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int before = 0;
  for (int base = 0; base < rows.experts; base += Threads) {
    const int e = base + static_cast<int>(threadIdx.x);
    const int begin = static_cast<int>(rows.sum(min(e, rows.experts) - 1));
    const int count = e < rows.experts ? max(static_cast<int>(rows.sum(e)) - begin, 0) : 0;
    const int own = (count + each - 1) / each;
    int sum = own;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += below;
    }
    if (lane == kWarp - 1) sums[warp] = sum;
    __syncthreads();
    int at = before + sum - own;
#pragma unroll
    for (int w = 0; w < Threads / kWarp; ++w) at += w < warp ? sums[w] : 0, before += sums[w];
    for (int i = 0; i < own && at + i < room; ++i)
      to[at + i] = {begin + i * each, e, i, count - i * each};
    __syncthreads();
  }
  return min(before, room);
}

// Zeros in the rows of `out` [rows, width] that belong to no expert. By all blocks.
template <typename T>
__device__ __forceinline__ void clear_rest(const ExpertRows& rows, int64_t width, T* out) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * blockDim.x, end = rows.rows * width;
  for (int64_t i = rows.sum(rows.experts - 1) * width + first; i < end; i += step)
    out[i] = from_float<T>(0.f);
}

}  // namespace fd

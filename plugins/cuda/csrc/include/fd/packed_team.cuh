// What the kernels for some tens of rows over packed weights share: K cut into the eighths that the
// warps of skinny.cuh have, between the blocks of a team (cluster.cuh), and their sums added in the
// same order. A row's bits do not depend on the kernel nor on the team's size.
#pragma once
#include "fd/cluster.cuh"
#include "fd/packed_weights.cuh"

namespace fd {

constexpr int kPackedTiles = 8;  // of 16 rows of W in a block, one for each warp to fetch

// The eighths of one block: `each` of them, windows [begin, end), `slice` in an eighth.
struct PackedShare {
  int each, slice, begin, end, windows;

  __device__ __forceinline__ PackedShare(const Team& team, int64_t depth, int window)
      : each(kSkinnyWarps / team.size),
        slice(static_cast<int>(skinny_slice(depth, window) / window)),
        windows(static_cast<int>((depth + window - 1) / window)) {
    begin = min(team.rank * each * slice, windows), end = min(begin + each * slice, windows);
  }
  __device__ __forceinline__ int slices() const { return (windows + slice - 1) / slice; }
};

// A word of block `other` of a team, given its address in this one. Without a branch for the own: a
// read is long under way, and a branch would wait for each.
__device__ __forceinline__ float read_team(const float* own, int other) {
#if FD_CLUSTERS
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(own));
  float x;
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(other));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(address));
  return x;
#else
  return *own;
#endif
}

// Where sums meet in shared memory, [slot][element of a thread][thread]: in a team every eighth has
// a slot; a block alone adds them up in one. E: sums of a thread.
template <int E>
struct PackedParts {
  static constexpr int kSlot = E * 256;
  float* sums;

  // `of(e)`: a reference to the thread's sum e, which becomes zero.
  template <typename F>
  __device__ __forceinline__ void keep(bool fold, int slot, F&& of) const {
    float* to = sums + (fold ? 0 : slot * kSlot) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < E; ++e) {
      to[e * 256] = fold && slot > 0 ? to[e * 256] + of(e) : of(e);
      of(e) = 0.f;
    }
  }
  // The sum of all eighths in their order; those that K does not reach have none.
  __device__ __forceinline__ float total(const Team& team, const PackedShare& share, int e) const {
    const float* own = sums + e * 256 + threadIdx.x;
    if (team.size == 1) return *own;
    float part[kSkinnyWarps], sum = 0.f;
#pragma unroll
    for (int s = 0; s < kSkinnyWarps; ++s)
      part[s] = read_team(own + s % share.each * kSlot, s / share.each);
#pragma unroll
    for (int s = 0; s < kSkinnyWarps; ++s) sum += s < share.slices() ? part[s] : 0.f;
    return sum;
  }
  // f(e, sum) for the block's part of the sums of all its team, some at a time: a sum is long under
  // way.
  template <typename F>
  __device__ __forceinline__ void finish(const Team& team, const PackedShare& share, F&& f) const {
    constexpr int kAtOnce = E / kSkinnyWarps;
    const int each = E / team.size;
    team.barrier();
    for (int e = team.rank * each; e < (team.rank + 1) * each; e += kAtOnce) {
      float sum[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) sum[i] = total(team, share, e + i);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) f(e + i, sum[i]);
    }
    team.barrier();  // nobody leaves while others read
  }
};

}  // namespace fd

// How parts of a tile's keys become its result, for the sm_90a kernel (paged_attention_sm90.cu).
//
// The rows of a tile are merged by as many blocks as computed its parts, a warp a row: whoever
// finds the list of items at its end turns to this, and waits for parts that others still compute.
#pragma once
#include "fd/attention_sm90.cuh"
#include "fd/mma.cuh"

namespace fd {

// A part's sums over values of one of its rows, float [D].
template <int D>
__device__ __forceinline__ float* sm90_sums(const Sm90Scratch& scratch, const Sm90Item& it,
                                            int part, int row) {
  const int64_t slot = it.slot + int64_t{part} * it.step;
  return scratch.partial + (slot * kSm90Rows + row) * D;
}

// What a row's exponents refer to in a part, and the sum of its weights.
template <int D>
__device__ __forceinline__ float2& sm90_stats(const Sm90Scratch& scratch, const Sm90Item& it,
                                              int part, int row) {
  float* stats = scratch.partial + int64_t{scratch.slots} * kSm90Rows * D;
  const int64_t slot = it.slot + int64_t{part} * it.step;
  return reinterpret_cast<float2*>(stats)[slot * kSm90Rows + row];
}

__device__ __forceinline__ int sm90_acquire(const int* counter) {
  int n;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory");
  return n;
}

// Until all warps of all parts have published; the last warp that has seen it resets the counter.
__device__ __forceinline__ void sm90_await_parts(const Sm90Scratch& scratch, const Sm90Item& it) {
  const int wanted = it.parts * kSm90Warps;
  if (threadIdx.x % kWarp == 0) {
    int* counter = scratch.counters + it.slot;
    while (sm90_acquire(counter) < wanted) __nanosleep(32);
    if (atomicAdd(counter, 1) == 2 * wanted - 1) *counter = 0;
  }
  __syncwarp();
}

// Weights of a row's parts, normalised, in this warp's `weights`.
template <int D>
__device__ __forceinline__ void sm90_part_weights(const Sm90Scratch& scratch, const Sm90Item& it,
                                                  int row, float sink, float* weights) {
  constexpr int kEach = kSm90MaxParts / kWarp;
  const int lane = threadIdx.x % kWarp;
  float2 stats[kEach];
  float top = sink, total = 0.f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int part = i * kWarp + lane;
    stats[i] = part < it.parts ? __ldcg(&sm90_stats<D>(scratch, it, part, row))
                               : make_float2(-INFINITY, 0.f);
    top = fmaxf(top, stats[i].x);
  }
  top = warp_reduce<Max>(top);
#pragma unroll
  for (int i = 0; i < kEach; ++i) total += stats[i].y * attention_rescale(stats[i].x, top);
  total = warp_reduce<Sum>(total);
  if (sink > -INFINITY) total += attention_exp2(sink - top);
  const float scale = total == 0.f ? 0.f : __fdividef(1.f, total);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (i * kWarp + lane < it.parts)
      weights[i * kWarp + lane] = scale * attention_rescale(stats[i].x, top);
  __syncwarp();
}

template <typename T, int D>
__device__ __forceinline__ void sm90_merge_row(const AttentionArgs& a, const Sm90Shape& shape,
                                               const Sm90Scratch& scratch, const Sm90Item& it,
                                               int row, float* weights) {
  const int r = it.first_row + row, head = it.head * shape.group + r % shape.group;
  const float sink = a.sinks != nullptr ? a.sinks[head] * kLog2e : -INFINITY;
  sm90_part_weights<D>(scratch, it, row, sink, weights);
  for (int d = threadIdx.x % kWarp * 4; d < a.dim; d += kWarp * 4) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int part = 0; part < it.parts; ++part) {
      const float* from = sm90_sums<D>(scratch, it, part, row) + d;
      const float4 x = __ldcg(reinterpret_cast<const float4*>(from));
      const float weight = weights[part];
      sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
    }
    T* to = static_cast<T*>(a.out) + (it.token + r / shape.group) * a.out_token + head * a.out_head;
    *reinterpret_cast<uint2*>(to + d) = make_uint2(pack2<T>(sum.x, sum.y), pack2<T>(sum.z, sum.w));
  }
  __syncwarp();
}

// By the warps that multiply, when the block has no items left. `weights`: shared, [kSm90Warps]
// [kSm90MaxParts].
template <typename T, int D>
__device__ __forceinline__ void sm90_merge(const AttentionArgs& a, const Sm90Shape& shape,
                                           const Sm90Scratch& scratch, const Sm90List& list,
                                           float* weights) {
  const int warp = threadIdx.x / kWarp - 4;
  for (int index = blockIdx.x; index < list.parted; index += gridDim.x) {
    const Sm90Item it = sm90_part(a, shape, list, index);
    if (it.parts == 1 || it.part >= it.parts) continue;
    sm90_await_parts(scratch, it);
    for (int row = it.part + it.parts * warp; row < it.rows; row += it.parts * kSm90Warps)
      sm90_merge_row<T, D>(a, shape, scratch, it, row, weights + warp * kSm90MaxParts);
  }
}

}  // namespace fd

// How the split kernel ends an item: its warps' sums become the block's, the blocks' the
// sequence's.
#pragma once
#include "fd/attention_split.cuh"

namespace fd {

// Of a row: the chunks' weights in their group, the groups', and what makes the sum a mean.
constexpr int kSplitGroupsAt = kSplitMaxChunks + 1, kSplitScaleAt = kSplitGroupsAt + kSplitGroups;
constexpr int kSplitWeights = kSplitScaleAt + 1;

// Shared memory behind the stages.
template <int D, int Rows>
struct SplitShared {
  union {
    float sum[Rows][D + 4];  // the padding keeps the lanes of a store in different banks
    float weights[kSplitWeights * Rows];  // of the chunks, once the sums are stored
  };
  float top[kSplitWarps][Rows], total[kSplitWarps][Rows];
  int is_last;
};

template <typename T, int D, int Rows>
__device__ __forceinline__ void split_store(const AttentionArgs& a, const SplitItem& it, int row,
                                            int d, float4 x) {
  const int group = a.heads / a.kv_heads, r = it.first_row + row;
  const int64_t token = it.start + r / group;
  T* to = static_cast<T*>(a.out) + token * a.out_token + (it.head * group + r % group) * a.out_head;
  *reinterpret_cast<uint2*>(to + d) = make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
}

__device__ __forceinline__ float4 split_add(float4 sum, float weight, float4 x) {
  return make_float4(sum.x + weight * x.x, sum.y + weight * x.y, sum.z + weight * x.z,
                     sum.w + weight * x.w);
}
__device__ __forceinline__ float4 split_scaled(float4 x, float scale) {
  return make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale);
}

// The dimension of the mma's row g (+ 8 for `half`) in tile m.
struct SplitDims {
  __device__ __forceinline__ static int at(int m, int half, int g) { return m * 16 + 8 * half + g; }
};

// The warps' sums become the block's, in their order. Leaves the unscaled sums in `sh.sum`.
template <typename T, int D, int N, typename Dims = SplitDims>
__device__ __forceinline__ void split_join(SplitState<T, D, N>& state, SplitShared<D, 8 * N>& sh) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float total = state.total[n][j];
#pragma unroll
      for (int d = 4; d < kWarp; d *= 2) total += __shfl_xor_sync(~0u, total, d);
      const int row = 8 * n + 2 * t + j;
      if (g == 0) sh.top[warp][row] = state.top[n][j], sh.total[warp][row] = total;
    }
  __syncthreads();
#pragma unroll 1
  for (int w = 0; w < kSplitWarps; ++w) {
    if (w == warp)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int row = 8 * n + 2 * t + j;
          float top = sh.top[0][row];
          for (int other = 1; other < kSplitWarps; ++other) top = fmaxf(top, sh.top[other][row]);
          const float scale = attention_rescale(state.top[n][j], top);
#pragma unroll
          for (int m = 0; m < D / 16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& to = sh.sum[row][Dims::at(m, half, g)];
              to = state.o[n][m][2 * half + j] * scale + (w == 0 ? 0.f : to);
            }
        }
    __syncthreads();
  }
}

// (largest logit, weights' sum) of a row over the block's warps.
template <int D, int Rows>
__device__ __forceinline__ float2 split_stats(const SplitShared<D, Rows>& sh, int row) {
  float top = sh.top[0][row], total = 0.f;
  for (int w = 1; w < kSplitWarps; ++w) top = fmaxf(top, sh.top[w][row]);
  for (int w = 0; w < kSplitWarps; ++w)
    total += sh.total[w][row] * attention_rescale(sh.top[w][row], top);
  return make_float2(top, total);
}

template <typename T, int D, int Rows>
__device__ __forceinline__ void split_write_only(const AttentionArgs& a, const SplitItem& it,
                                                 const SplitShared<D, Rows>& sh) {
  for (int i = threadIdx.x; i < it.rows * D / 4; i += kSplitThreads) {
    const int row = i / (D / 4), d = i % (D / 4) * 4;
    const float2 stats = split_stats(sh, row);
    const int group = a.heads / a.kv_heads, head = it.head * group + (it.first_row + row) % group;
    const float scale = attention_scale(a, head, stats.x, stats.y);
    const float4 x = *reinterpret_cast<const float4*>(&sh.sum[row][d]);
    if (d < a.dim) split_store<T, D, Rows>(a, it, row, d, split_scaled(x, scale));
  }
}

// This chunk's sums to the scratch; true in the block that finds all others' there.
template <int D, int Rows>
__device__ __forceinline__ bool split_publish(const SplitWork& w, const SplitItem& it,
                                              SplitShared<D, Rows>& sh) {
  const int64_t slot = it.slot + static_cast<int64_t>(it.chunk) * it.step;
  for (int i = threadIdx.x; i < it.rows * D / 4; i += kSplitThreads) {
    const int row = i / (D / 4), d = i % (D / 4) * 4;
    *reinterpret_cast<float4*>(w.partial + (slot * w.rows + row) * D + d) =
        *reinterpret_cast<const float4*>(&sh.sum[row][d]);
  }
  if (threadIdx.x < it.rows)
    *reinterpret_cast<float2*>(w.stats + (slot * w.rows + threadIdx.x) * 2) =
        split_stats(sh, threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const int before = atomicAdd(w.counters + it.slot, 1);
    sh.is_last = before == it.chunks - 1;
    if (sh.is_last) w.counters[it.slot] = 0;  // for the next launch
    __threadfence();
  }
  __syncthreads();
  return sh.is_last;
}

// What 32 chunks of a row, one a lane, weigh in their groups, and the groups' largest logits.
struct SplitLane {
  float top, total, high;

  __device__ __forceinline__ explicit SplitLane(float2 stats) : top(stats.x), total(stats.y) {
    high = top;
#pragma unroll
    for (int d = 1; d < kSplitGroup; d *= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
  }
  __device__ __forceinline__ float weight() const { return attention_rescale(top, high); }
  // The total of the lane's group, in the chunks' order.
  __device__ __forceinline__ float group_total() const {
    const int lane = threadIdx.x % kWarp, first = lane / kSplitGroup * kSplitGroup;
    const float mine = weight();
    float sum = 0.f;
#pragma unroll
    for (int c = 0; c < kSplitGroup; ++c)
      sum += __shfl_sync(~0u, total, first + c) * __shfl_sync(~0u, mine, first + c);
    return sum;
  }
};

// kSplitWeights of each row, [..][Rows]: a warp a row.
template <int Rows>
__device__ __forceinline__ void split_weights(const AttentionArgs& a, const SplitWork& w,
                                              const SplitItem& it, float* weights) {
  constexpr int kRounds = kSplitMaxChunks / kWarp + 1;  // a window may add a chunk
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, group = a.heads / a.kv_heads;
  for (int row = warp; row < it.rows; row += kSplitWarps) {
    float2 stats[kRounds];
    float top = -INFINITY, total = 0.f;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int64_t slot = it.slot + int64_t{i * kWarp + lane} * it.step;
      stats[i] = i * kWarp + lane < it.chunks
                     ? __ldcg(reinterpret_cast<const float2*>(w.stats) + slot * w.rows + row)
                     : make_float2(-INFINITY, 0.f);
      top = fmaxf(top, stats[i].x);
    }
    top = warp_reduce<Max>(top);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (i * kWarp >= it.chunks) break;
      const int chunk = i * kWarp + lane;
      const SplitLane mine(stats[i]);
      const float sum = mine.group_total(), weight = attention_rescale(mine.high, top);
#pragma unroll
      for (int g = 0; g < kWarp; g += kSplitGroup)
        total += __shfl_sync(~0u, sum, g) * __shfl_sync(~0u, weight, g);
      if (chunk < it.chunks) weights[chunk * Rows + row] = mine.weight();
      if (chunk < it.chunks && lane % kSplitGroup == 0)
        weights[(kSplitGroupsAt + chunk / kSplitGroup) * Rows + row] = weight;
    }
    const int head = it.head * group + (it.first_row + row) % group;
    if (lane == 0) weights[kSplitScaleAt * Rows + row] = attention_scale(a, head, top, total);
  }
}

// Four elements of the sum over a group's chunks, `first` the first of them: all are read before
// any is used. `from`: of chunk 0, `step` behind each other.
__device__ __forceinline__ float4 split_group(const float4* from, int64_t step, int first,
                                              int chunks, const float* weights, int rows) {
  float4 x[kSplitGroup], sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
  for (int c = 0; c < kSplitGroup; ++c) x[c] = __ldcg(from + min(first + c, chunks - 1) * step);
#pragma unroll
  for (int c = 0; c < kSplitGroup; ++c)
    if (first + c < chunks) sum = split_add(sum, weights[(first + c) * rows], x[c]);
  return sum;
}

template <typename T, int D, int Rows>
__device__ __forceinline__ void split_merge(const AttentionArgs& a, const SplitWork& w,
                                            const SplitItem& it, float* weights) {
  split_weights<Rows>(a, w, it, weights);
  __syncthreads();
  const int64_t step = int64_t{it.step} * w.rows * (D / 4);
  for (int i = threadIdx.x; i < it.rows * D / 4; i += kSplitThreads) {
    const int row = i / (D / 4), d = i % (D / 4) * 4;
    const float* mine = weights + row;
    const float4* from =
        reinterpret_cast<const float4*>(w.partial) + int64_t{it.slot} * w.rows * (D / 4) + i;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 2
    for (int first = 0; first < it.chunks; first += kSplitGroup)
      sum = split_add(sum, mine[(kSplitGroupsAt + first / kSplitGroup) * Rows],
                      split_group(from, step, first, it.chunks, mine, Rows));
    if (d < a.dim)
      split_store<T, D, Rows>(a, it, row, d, split_scaled(sum, mine[kSplitScaleAt * Rows]));
  }
}

}  // namespace fd

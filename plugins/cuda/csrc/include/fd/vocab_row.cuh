// Rows as long as a vocabulary: split into segments that blocks share, each thread keeping a group
// of 32 entries in registers. The split is fixed, so no result depends on the batch or the device.
#pragma once
#include "fd/reduce.cuh"

namespace fd {

constexpr int kSegmentThreads = 128;
constexpr int kGroupPacks = 8;  // groups: packs of four entries, a segment's width apart
constexpr int kSegment = kSegmentThreads * kGroupPacks * 4;

__host__ __device__ constexpr int64_t segments_of(int64_t width) {
  return (width + kSegment - 1) / kSegment;
}

// A float32 matrix; `aligned`: every row starts at a multiple of 16 bytes.
struct VocabRows {
  const float* data;
  int64_t step, width;
  bool aligned;

  // Entries at .. at + 3 of a row; NaN, which no comparison accepts, beyond its end.
  __device__ __forceinline__ Vec<float, 4> load(int64_t row, int64_t at) const {
    const float* x = data + row * step + at;
    if (aligned && at + 4 <= width) return *reinterpret_cast<const Vec<float, 4>*>(x);
    Vec<float, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; ++i) pack[i] = at + i < width ? x[i] : __int_as_float(0x7fffffff);
    return pack;
  }
};

// First entry of pack `v` of group `g` of a row.
__device__ __forceinline__ int64_t pack_start(int64_t g, int v) {
  return g / kSegmentThreads * kSegment + (v * kSegmentThreads + g % kSegmentThreads) * 4;
}

// What one segment tells about its row.
struct RowPart {
  float max;      // of its numbers; -inf if there is none
  float sum;      // softmax: of exp((x - max) / T); probabilities: of the entries clipped to [0, 1]
  int32_t hot;    // lowest id that holds `max`, INT_MAX for none; where a row turns one-hot on it
  int32_t count;  // entries >= the row's token, where tokens were given
};

// Orders as floats do, with -0 equal to 0; above 0 for every number.
__device__ __forceinline__ uint32_t float_order(float x) {
  const int bits = __float_as_int(x + 0.f);
  return static_cast<uint32_t>(bits < 0 ? ~bits : bits | static_cast<int>(0x80000000u));
}

// A value above the complement of its id: the largest is the lowest id of the largest value.
__device__ __forceinline__ uint64_t order_key(float x, int64_t id) {
  return static_cast<uint64_t>(float_order(x)) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

// Temperatures without a finite reciprocal make a row one-hot.
__device__ __forceinline__ bool one_hot(float temperature) {
  return temperature < 2.938735877055719e-39f;  // 2^-128
}

// log2(e) / T, rounded once: the scale of logits for exponentials of base 2.
__device__ __forceinline__ float exp_scale(float temperature) {
  constexpr float kHigh = 1.44269502f, kLow = 1.92596299e-8f;
  const float scale = kHigh / temperature;
  if (!(scale < 1e38f)) return fminf(scale, 3.402823466e38f);
  return scale + (fmaf(-scale, temperature, kHigh) + kLow) / temperature;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// exp((x - max) / T), 1 at x == max even if that is infinite, 0 for NaN.
__device__ __forceinline__ float exp_below(float x, float max, float scale) {
  const float e = exp2_fast((fmaxf(x, -INFINITY) - max) * scale);
  return x == max ? 1.f : e;
}

__device__ __forceinline__ int block_min(int x, int* scratch) {
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) x = min(x, __shfl_xor_sync(0xffffffffu, x, d));
  const int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  if (lane == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = lane < warps ? scratch[lane] : 0x7fffffff;
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) x = min(x, __shfl_xor_sync(0xffffffffu, x, d));
  return x;
}

// The entries of one thread's group.
struct Group {
  Vec<float, 4> packs[kGroupPacks];

  __device__ __forceinline__ Group(const VocabRows& rows, int64_t row, int64_t g) {
#pragma unroll
    for (int v = 0; v < kGroupPacks; ++v) packs[v] = rows.load(row, pack_start(g, v));
  }
  // f(x, v, i) in a fixed order.
  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
#pragma unroll
    for (int v = 0; v < kGroupPacks; ++v)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(packs[v][i], v, i);
  }
  __device__ __forceinline__ float max() const {
    float best = -INFINITY;
    each([&](float x, int, int) { best = fmaxf(best, x); });
    return best;
  }
  // Lowest id of `value`, INT_MAX for none.
  __device__ __forceinline__ int find(float value, int64_t g) const {
    int found = 0x7fffffff;
    each([&](float x, int v, int i) {
      if (x == value) found = min(found, static_cast<int>(pack_start(g, v)) + i);
    });
    return found;
  }
};

// A row's parts put together; by every thread of a block, in the same order everywhere.
struct RowTotal {
  float max, sum;
  int hot, count;
};

// `scale` 0: parts of probabilities, whose sums add up as they are.
__device__ __forceinline__ RowTotal row_total(const RowPart* parts, int segments, float scale) {
  const int lane = threadIdx.x % kWarp;
  float max = -INFINITY, sum = 0.f;
  int hot = 0x7fffffff, count = 0;
  for (int s = lane; s < segments; s += kWarp) max = fmaxf(max, parts[s].max);
  max = warp_reduce<Max>(max);
  for (int s = lane; s < segments; s += kWarp) {
    const RowPart part = parts[s];
    sum += scale == 0.f ? part.sum : part.sum * exp_below(part.max, max, scale);
    if (part.max == max) hot = min(hot, part.hot);
    count += part.count;
  }
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, d);
    hot = min(hot, __shfl_xor_sync(0xffffffffu, hot, d));
    count += __shfl_xor_sync(0xffffffffu, count, d);
  }
  return {max, sum, hot, count};
}

}  // namespace fd

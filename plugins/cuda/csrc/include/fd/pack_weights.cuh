// Plain weights to packed ones (packed_weights.cuh). Once per model: clear rather than fast.
#pragma once
#include "fd/packed_weights.cuh"
#include "fd/reduce.cuh"

namespace fd {

template <typename W>
struct PlainMatrix {
  const W* w;
  int64_t step, columns, depth;

  // Zero outside.
  __device__ __forceinline__ float at(int64_t n, int64_t k) const {
    return n < columns && k < depth ? to_float(w[n * step + k]) : 0.f;
  }
};

// code = x / scale, nearest, within [low, high]; 0 where the scale is none.
__device__ __forceinline__ int code_of(float x, float scale, float low, float high) {
  if (!(fabsf(scale) > 0.f) || !isfinite(scale)) return 0;
  return static_cast<int>(fminf(fmaxf(rintf(x / scale), low), high));
}

// A block packs the rows g and g + 8 of a tile: blockIdx.x = 8 * tile + g.
template <typename W>
__global__ void __launch_bounds__(256)
    pack_int8_tiles(PlainMatrix<W> from, int64_t windows, uint32_t* to, float* scales) {
  __shared__ float scratch[kWarp];
  const int64_t tile = blockIdx.x / 8, depth = windows * kInt8Window;
  const int g = blockIdx.x % 8;
  float scale[2];
  for (int hi = 0; hi < 2; ++hi) {
    const int64_t n = tile * 16 + g + 8 * hi;
    float most = 0.f, wrong = 0.f;
    for (int64_t k = threadIdx.x; k < from.depth; k += blockDim.x) {
      const float x = from.at(n, k);
      most = fmaxf(most, fabsf(x)), wrong = isfinite(x) ? wrong : 1.f;
    }
    __syncthreads();
    most = block_reduce<Max>(most, scratch);
    __syncthreads();
    wrong = block_reduce<Max>(wrong, scratch);
    scale[hi] = wrong > 0.f ? __int_as_float(0x7fffffff) : most / 127.f;
    if (threadIdx.x == 0 && n < from.columns) scales[n] = scale[hi];
  }
  uint32_t* mine = to + tile * windows * (kInt8Window * 4);
  for (int64_t k = int64_t{threadIdx.x} * 4; k < depth; k += blockDim.x * 4) {
    uint32_t words[2] = {};
    for (int i = 0; i < 8; ++i) {
      const int j = i / 2, hi = i % 2;
      const float x = from.at(tile * 16 + g + 8 * hi, k + j);
      const int code = code_of(x, scale[hi], -127.f, 127.f);
      words[j / 2] |= static_cast<uint32_t>(code & 255) << (j % 2 * 16 + hi * 8);
    }
    const int64_t window = k / kInt8Window;
    uint32_t* word =
        mine + window * (kInt8Window * 4) + int8_word(static_cast<int>(k % kInt8Window), g);
    word[0] = words[0], word[1] = words[1];
  }
}

// Int4 codes of elements k .. k + 3 of rows n and n + 8, as packed_weights.cuh orders them.
template <typename W>
__device__ __forceinline__ uint32_t int4_codes(const PlainMatrix<W>& from, int64_t n, int64_t k,
                                               const float (&scale)[2]) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) {
    const int j = i / 2, hi = i % 2;
    const int stored = code_of(from.at(n + 8 * hi, k + j), scale[hi], -8.f, 7.f) + 8;
    word |= static_cast<uint32_t>(stored) << (4 * (j / 2 * 2 + j % 2 * 4 + hi));
  }
  return word;
}

// Scales that are tried for int4 codes: absmax / 7, the outermost element / -8 (codes -8 .. 7), and
// somewhat smaller ones.
constexpr int kScaleCandidates = 12;
constexpr float kScaleShrink = 0.025f;

__device__ __forceinline__ float group_loss(const float (&x)[4], float scale) {
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float away = x[j] - static_cast<float>(code_of(x[j], scale, -8.f, 7.f)) * scale;
    sum += away * away;
  }
  return warp_reduce<Sum>(sum);
}

__device__ __forceinline__ float scale_candidate(float top, float bottom, int i) {
  const float most = fmaxf(top, bottom);
  const float start = i % 2 == 0 ? most / 7.f : (top >= bottom ? top : -bottom) / -8.f;
  return start * (1.f - kScaleShrink * static_cast<float>(i / 2));
}

// The bfloat16 scale of least squared error for a group, four elements in each lane.
__device__ __forceinline__ float group_scale(const float (&x)[4]) {
  float top = -INFINITY, bottom = -INFINITY, wrong = 0.f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    top = fmaxf(top, x[j]), bottom = fmaxf(bottom, -x[j]);
    wrong = isfinite(x[j]) ? wrong : 1.f;
  }
  top = warp_reduce<Max>(top), bottom = warp_reduce<Max>(bottom);
  if (warp_reduce<Max>(wrong) > 0.f) return __int_as_float(0x7fffffff);
  float best = 0.f, least = INFINITY;
  for (int i = 0; i < 2 * kScaleCandidates; ++i) {
    const float scale = to_float(from_float<bf16>(scale_candidate(top, bottom, i)));
    const float loss = group_loss(x, scale);
    if (loss < least) best = scale, least = loss;
  }
  return best;
}

// The sum over a row of f(element), or the largest, for every thread of the block.
template <typename Op, typename W, typename F>
__device__ __forceinline__ float over_row(const PlainMatrix<W>& from, int64_t n, float* scratch,
                                          F&& f) {
  float mine = Op::neutral();
  for (int64_t k = threadIdx.x; k < from.depth; k += blockDim.x)
    mine = Op::of(mine, f(from.at(n, k)));
  __syncthreads();
  return block_reduce<Op>(mine, scratch);
}

// The scale of least squared error for a row.
template <typename W>
__device__ __forceinline__ float int4_row_scale(const PlainMatrix<W>& from, int64_t n,
                                                float* scratch) {
  const float top = over_row<Max>(from, n, scratch, [](float x) { return x; });
  const float bottom = over_row<Max>(from, n, scratch, [](float x) { return -x; });
  const float wrong =
      over_row<Max>(from, n, scratch, [](float x) { return isfinite(x) ? 0.f : 1.f; });
  if (wrong > 0.f) return __int_as_float(0x7fffffff);
  float best = 0.f, least = INFINITY;
  for (int i = 0; i < 2 * kScaleCandidates; ++i) {
    const float scale = scale_candidate(top, bottom, i);
    const float loss = over_row<Sum>(from, n, scratch, [&](float x) {
      const float away = x - static_cast<float>(code_of(x, scale, -8.f, 7.f)) * scale;
      return away * away;
    });
    if (loss < least) best = scale, least = loss;
  }
  return best;
}

// A block packs the rows g and g + 8 of a tile: blockIdx.x = 8 * tile + g.
template <typename W>
__global__ void __launch_bounds__(256)
    pack_int4_rows(PlainMatrix<W> from, int64_t windows, uint32_t* to, float* scales) {
  __shared__ float scratch[kWarp];
  const int64_t tile = blockIdx.x / 8, depth = windows * kInt4RowWindow;
  const int g = blockIdx.x % 8;
  float scale[2];
  for (int hi = 0; hi < 2; ++hi) {
    const int64_t n = tile * 16 + g + 8 * hi;
    scale[hi] = int4_row_scale(from, n, scratch);
    if (threadIdx.x == 0 && n < from.columns) scales[n] = scale[hi];
  }
  uint32_t* mine = to + tile * windows * (kInt4RowWindow * 2);
  for (int64_t k = int64_t{threadIdx.x} * 4; k < depth; k += blockDim.x * 4) {
    const int64_t window = k / kInt4RowWindow;
    const int word = int4_word(static_cast<int>(k % kInt4RowWindow), g);
    mine[window * (kInt4RowWindow * 2) + word] = int4_codes(from, tile * 16 + g, k, scale);
  }
}

// A warp packs a group of the rows g and g + 8 of a tile: warps count 8 * (tile * groups + group) +
// g.
template <typename W>
__global__ void __launch_bounds__(256)
    pack_int4_groups(PlainMatrix<W> from, int64_t tiles, int64_t groups, int group, uint32_t* to,
                     bf16* scales) {
  const int64_t warp = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, g = static_cast<int>(warp % 8);
  const int64_t at = warp / 8, tile = at / groups, k = at % groups * group + lane * 4;
  if (tile >= tiles) return;
  const bool inside = lane * 4 < group;
  float scale[2];
  for (int hi = 0; hi < 2; ++hi) {
    float x[4];
    for (int j = 0; j < 4; ++j) x[j] = inside ? from.at(tile * 16 + g + 8 * hi, k + j) : 0.f;
    scale[hi] = group_scale(x);
    if (lane == 0) scales[at * 16 + g * 2 + hi] = from_float<bf16>(scale[hi]);
  }
  if (inside)
    to[at * group * 2 + int4_word(lane * 4, g)] = int4_codes(from, tile * 16 + g, k, scale);
}

}  // namespace fd

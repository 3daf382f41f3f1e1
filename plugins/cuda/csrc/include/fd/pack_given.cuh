// Weights that were rounded already to packed ones, with scales and zero points as given. Once per
// model: clear rather than fast.
#pragma once
#include "fd/pack_weights.cuh"

namespace fd {

// Scales and zero points [columns, groups] of a weight; `zeros` may be null: 0. `length`: inputs of
// a group.
struct GivenSteps {
  const float *scales, *zeros;
  int64_t groups, length;

  // The code of x, an element of row n and column k.
  __device__ __forceinline__ int code(float x, int64_t n, int64_t k, int low, int high) const {
    const int64_t at = n * groups + k / length;
    const float scale = scales[at], zero = zeros == nullptr ? 0.f : zeros[at];
    if (!(fabsf(scale) > 0.f) || !isfinite(scale) || !isfinite(x)) return static_cast<int>(zero);
    const float near = rintf(x / scale) + zero;
    return static_cast<int>(fminf(fmaxf(near, static_cast<float>(low)), static_cast<float>(high)));
  }
};

// The code of an element of a tile; 0 where the weight ends.
template <typename W>
__device__ __forceinline__ int given_code(const PlainMatrix<W>& from, const GivenSteps& steps,
                                          int64_t n, int64_t k, int low, int high) {
  if (n >= from.columns || k >= from.depth) return 0;
  return steps.code(to_float(from.w[n * from.step + k]), n, k, low, high);
}

// A thread has elements k .. k + 3 of the rows g and g + 8 of a tile: they count 8 * quads * tile +
// quads * g + k / 4, with quads those of all windows.
struct GivenQuad {
  int64_t tile, k;
  int g;

  __device__ __forceinline__ explicit GivenQuad(int64_t quads) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    tile = i / (8 * quads), g = static_cast<int>(i / quads % 8), k = i % quads * 4;
  }
};

template <typename W>
__global__ void __launch_bounds__(256)
    pack_int4_given_quads(PlainMatrix<W> from, GivenSteps steps, int64_t tiles, int64_t windows,
                          int window, uint32_t* to) {
  const GivenQuad at(windows * window / 4);
  if (at.tile >= tiles) return;
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) {
    const int j = i / 2, hi = i % 2;
    const int code = given_code(from, steps, at.tile * 16 + at.g + 8 * hi, at.k + j, -8, 7);
    word |= static_cast<uint32_t>(code + 8) << (4 * (j / 2 * 2 + j % 2 * 4 + hi));
  }
  const int64_t first = (at.tile * windows + at.k / window) * window * 2;
  to[first + int4_word(static_cast<int>(at.k % window), at.g)] = word;
}

template <typename W>
__global__ void __launch_bounds__(256)
    pack_int8_given_quads(PlainMatrix<W> from, GivenSteps steps, int64_t tiles, int64_t windows,
                          uint32_t* to) {
  const GivenQuad at(windows * kInt8Window / 4);
  if (at.tile >= tiles) return;
  uint32_t words[2] = {};
  for (int i = 0; i < 8; ++i) {
    const int j = i / 2, hi = i % 2;
    const int code = given_code(from, steps, at.tile * 16 + at.g + 8 * hi, at.k + j, -128, 127);
    words[j / 2] |= static_cast<uint32_t>(code & 255) << (j % 2 * 16 + hi * 8);
  }
  const int64_t first = (at.tile * windows + at.k / kInt8Window) * kInt8Window * 4;
  uint32_t* word = to + first + int8_word(static_cast<int>(at.k % kInt8Window), at.g);
  word[0] = words[0], word[1] = words[1];
}

// codes [columns, depth] as they are.
template <typename W>
__global__ void __launch_bounds__(256)
    pack_rows_given_codes(PlainMatrix<W> from, GivenSteps steps, int8_t* to) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= from.columns * from.depth) return;
  const int64_t n = i / from.depth, k = i % from.depth;
  to[i] = static_cast<int8_t>(given_code(from, steps, n, k, -128, 127));
}

// The best of the scales and zero points tried for a group; a warp has one.
template <typename W>
struct StepSearch {
  const PlainMatrix<W>& from;
  int64_t n, first, length;
  float root;  // of the mean square
  float scale, zero, least;

  template <typename Op, typename F>
  __device__ __forceinline__ float over(F&& f) const {
    float mine = Op::neutral();
    for (int64_t k = threadIdx.x % kWarp; k < length; k += kWarp)
      mine = Op::of(mine, f(from.at(n, first + k)));
    return warp_reduce<Op>(mine);
  }
  // Squared errors; those of large weights count for more, as they do more for the outputs.
  __device__ __forceinline__ float loss(float step, float offset) const {
    return over<Sum>([&](float x) {
      const float level = fminf(fmaxf(rintf(x / step), -8.f - offset), 7.f - offset);
      const float away = x - level * step;
      return away * away * (1.f + fabsf(x) / root);
    });
  }
  __device__ __forceinline__ void try_one(float step, float offset) {
    step = to_float(from_float<bf16>(step));
    if (!(fabsf(step) > 0.f)) return;
    const float found = loss(step, offset);
    if (found < least) scale = step, zero = offset, least = found;
  }
};

// scales and zeros [columns, groups]: of each group those of the least squared error among the
// range of its weights over all codes, somewhat more and less, and the scales of codes without a
// zero point. Not finite weights: scale NaN. A warp has a group.
template <typename W>
__global__ void __launch_bounds__(256)
    int4_steps_groups(PlainMatrix<W> from, int64_t groups, int64_t length, float* scales,
                      float* zeros) {
  const int64_t i = int64_t{blockIdx.x} * 8 + threadIdx.x / kWarp;
  if (i >= from.columns * groups) return;
  const int64_t first = i % groups * length;
  StepSearch<W> best{from, i / groups, first, min(length, from.depth - first),
                     0.f,  0.f,        0.f,   INFINITY};
  const float high = best.template over<Max>([](float x) { return x; });
  const float low = -best.template over<Max>([](float x) { return -x; });
  const float wrong = best.template over<Max>([](float x) { return isfinite(x) ? 0.f : 1.f; });
  const float squares = best.template over<Sum>([](float x) { return x * x; });
  best.root = sqrtf(squares / static_cast<float>(best.length));
  for (int c = -4; c < 12 && wrong == 0.f; ++c) {
    const float part = 1.f - kScaleShrink * static_cast<float>(c);
    const float most = fmaxf(high, -low), span = (high - low) / 15.f * part;
    best.try_one(most / 7.f * part, 0.f);
    best.try_one((high >= -low ? high : low) / -8.f * part, 0.f);
    if (!(span > 0.f)) continue;
    const float middle = fminf(fmaxf((low + high) / (-2.f * span) - 0.5f, -127.f), 126.f);
    for (int away = -1; away < 2; ++away)
      best.try_one(span, rintf(middle) + static_cast<float>(away));
  }
  if (threadIdx.x % kWarp != 0) return;
  scales[i] = wrong > 0.f ? __int_as_float(0x7fffffff) : best.scale;
  zeros[i] = best.zero;
}

}  // namespace fd

// Long rows (a vocabulary) in segments: one row can be shared by threads, and since the segments'
// borders are fixed, no result depends on how many threads there are.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "fd/parallel.h"
#include "fd/types.h"

namespace fd {

constexpr int64_t kSegment = 8192;
constexpr float kInf = std::numeric_limits<float>::infinity();

inline int64_t segments(int64_t width) { return (width + kSegment - 1) / kSegment; }

// body(row, segment, begin, end) for every segment of every row.
template <typename F>
void for_segments(int64_t rows, int64_t width, F&& body) {
  const int64_t per_row = segments(width);
  parallel_for(rows * per_row, 2, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % per_row * kSegment;
      body(i / per_row, i % per_row, begin, std::min(width, begin + kSegment));
    }
  });
}

// Lane-wise maximum; a NaN in x never wins.
inline vf vmax(vf m, vf x) {
#if defined(__AVX512F__)
  return x > m ? x : m;
#else  // GCC takes the selection above apart where a vector is several registers
  for (int i = 0; i < kLanes; ++i) m[i] = x[i] > m[i] ? x[i] : m[i];
  return m;
#endif
}

// Largest value of [begin, end) that is not NaN; -inf if there is none.
template <typename T>
float max_of(const T* x, int64_t begin, int64_t end) {
  vf m[4] = {splat(-kInf), splat(-kInf), splat(-kInf), splat(-kInf)};
  int64_t i = begin;
  for (; i + 4 * kLanes <= end; i += 4 * kLanes)
    for (int k = 0; k < 4; ++k) m[k] = vmax(m[k], load16(x + i + k * kLanes));
  float best = max16(vmax(vmax(m[0], m[1]), vmax(m[2], m[3])));
  for (; i < end; ++i) best = to_float(x[i]) > best ? to_float(x[i]) : best;
  return best;
}

// First index in [begin, end) that holds `value`, else `end`.
template <typename T>
int64_t index_of(const T* x, int64_t begin, int64_t end, float value) {
  while (begin < end && !(to_float(x[begin]) == value)) ++begin;
  return begin;
}

// Index of the row's largest value `best` given the segments' maxima: ties go to the lowest id, a
// row without any number to 0.
template <typename T>
int64_t argmax_of(const T* x, int64_t width, const float* maxima, float best) {
  for (int64_t s = 0; s < segments(width); ++s) {
    if (maxima[s] != best) continue;
    const int64_t end = std::min(width, (s + 1) * kSegment);
    const int64_t i = index_of(x, s * kSegment, end, best);
    if (i < end) return i;
  }
  return 0;
}

}  // namespace fd

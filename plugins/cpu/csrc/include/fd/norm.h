// Pieces of the RMS norms. Sums of squares run in four accumulators over fixed positions of the
// row, so a row's norm depends on the row alone.
#pragma once
#include <cmath>

#include "fd/checks/norm.h"

namespace fd {

// Sum of f(i)^2, f(i) giving lanes [i, i + 16) and last(i, n) the n < 16 that remain.
template <typename F, typename G>
inline float sum_squares_of(int64_t n, F f, G last) {
  vf a{}, b{}, c{}, d{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const vf p = f(i), q = f(i + kLanes), r = f(i + 2 * kLanes), s = f(i + 3 * kLanes);
    a += p * p, b += q * q, c += r * r, d += s * s;
  }
  for (; i + kLanes <= n; i += kLanes) {
    const vf p = f(i);
    a += p * p;
  }
  if (i < n) {
    const vf p = last(i, static_cast<int>(n - i));
    b += p * p;
  }
  return sum16((a + b) + (c + d));
}

template <typename T>
inline float sum_squares(const T* x, int64_t n) {
  return sum_squares_of(
      n, [=](int64_t i) { return load16(x + i); },
      [=](int64_t i, int m) { return load_tail(x + i, m); });
}

// 1 / sqrt(sum / n + eps).
inline float rms_scale(float sum, int64_t n, float eps) {
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}

// out = x * scale * weight; out may be x.
template <typename T, typename W>
inline void scale_row(const T* x, const W* weight, float scale, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store16(out + i, load16(x + i) * scale * load16(weight + i));
  const int m = static_cast<int>(n - i);
  if (m > 0) store_tail(out + i, load_tail(x + i, m) * scale * load_tail(weight + i, m), m);
}

template <typename T, typename W>
inline void rms_row(const T* x, const W* weight, float eps, int64_t n, T* out) {
  scale_row(x, weight, rms_scale(sum_squares(x, n), n, eps), n, out);
}

}  // namespace fd

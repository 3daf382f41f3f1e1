// Rotation of one head vector by precomputed cos and sin; `half` pairs, the rest of the head
// untouched.
#pragma once
#include "fd/types.h"

namespace fd {

// Pairs (j, j + half).
template <typename T, typename C>
inline void rotate_neox(T* head, const C* cos, const C* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const vf x = load16(head + i), y = load16(head + half + i);
    const vf c = load16(cos + i), s = load16(sin + i);
    store16(head + i, x * c - y * s);
    store16(head + half + i, y * c + x * s);
  }
  for (; i < half; ++i) {
    const float x = to_float(head[i]), y = to_float(head[half + i]);
    const float c = to_float(cos[i]), s = to_float(sin[i]);
    head[i] = from_float<T>(x * c - y * s);
    head[half + i] = from_float<T>(y * c + x * s);
  }
}

// Pairs (2j, 2j + 1).
template <typename T, typename C>
inline void rotate_interleaved(T* head, const C* cos, const C* sin, int64_t half) {
  int64_t j = 0;
  for (; j + kLanes <= half; j += kLanes) {
    float v[2 * kLanes], c[kLanes], s[kLanes];
    T* pairs = head + 2 * j;
    store16(v, load16(pairs)), store16(v + kLanes, load16(pairs + kLanes));
    store16(c, load16(cos + j)), store16(s, load16(sin + j));
    for (int i = 0; i < kLanes; ++i) {
      const float x = v[2 * i], y = v[2 * i + 1];
      v[2 * i] = x * c[i] - y * s[i];
      v[2 * i + 1] = y * c[i] + x * s[i];
    }
    store16(pairs, load16(v)), store16(pairs + kLanes, load16(v + kLanes));
  }
  for (; j < half; ++j) {
    const float x = to_float(head[2 * j]), y = to_float(head[2 * j + 1]);
    const float c = to_float(cos[j]), s = to_float(sin[j]);
    head[2 * j] = from_float<T>(x * c - y * s);
    head[2 * j + 1] = from_float<T>(y * c + x * s);
  }
}

}  // namespace fd

// Symmetric integer codes of floats: code = round_to_even(x * (limit / absmax)), x ~ code * scale.
#pragma once
#include <algorithm>
#include <limits>

#include "fd/types.h"

namespace fd {

typedef int8_t vb __attribute__((vector_size(16)));
typedef int16_t vs __attribute__((vector_size(32)));

constexpr uint32_t kInfinityBits = 0x7f800000u;
// A magnitude below which everything counts as zero: limit / absmax would overflow.
constexpr float kTinyAbsmax = 1e-30f;

// Nearest integers, ties to even; |x| < 2^31.
inline vi round16(vf x) {
#if defined(__AVX512F__)
  return reinterpret_cast<vi>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x)));
#else
  vi r;
  for (int i = 0; i < kLanes; ++i) r[i] = static_cast<int32_t>(__builtin_nearbyintf(x[i]));
  return r;
#endif
}

// All lanes joined by op(a, b), which vectors of any width and numbers have.
template <typename Op>
inline int32_t join16(vi v, Op op) {
#if defined(__AVX512F__)
  typedef int32_t Half __attribute__((vector_size(32)));
  typedef int32_t Quarter __attribute__((vector_size(16)));
  const Half a = op(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  const Quarter b =
      op(__builtin_shufflevector(a, a, 0, 1, 2, 3), __builtin_shufflevector(a, a, 4, 5, 6, 7));
  return op(op(b[0], b[1]), op(b[2], b[3]));
#else
  int32_t all = v[0];
  for (int l = 1; l < kLanes; ++l) all = op(all, v[l]);
  return all;
#endif
}
inline int32_t largest16(vi v) {
  return join16(v, [](auto a, auto b) { return a > b ? a : b; });
}
inline int32_t total16(vi v) {
  return join16(v, [](auto a, auto b) { return a + b; });
}

// Largest magnitude; infinity or NaN if any element is (magnitudes compare like their bits).
template <typename T>
float absmax(const T* x, int64_t n) {
  vi top{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vi bits = reinterpret_cast<vi>(load16(x + i)) & 0x7fffffff;
    top = bits > top ? bits : top;
  }
  int32_t most = largest16(top);
  for (; i < n; ++i)
    most = std::max(most, static_cast<int32_t>(as_bits(to_float(x[i])) & 0x7fffffffu));
  return as_float(static_cast<uint32_t>(most));
}

// The multiplier of codes and of floats for one set of values. Where an element is not finite,
// codes are zero and the scale is NaN: what is multiplied by it becomes NaN, nothing else does.
struct Scale {
  float of_codes, of_floats;

  Scale(float most, float limit) {
    const bool finite = as_bits(most) < kInfinityBits;
    const bool any = finite && most > kTinyAbsmax;
    of_codes = any ? most / limit : finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    of_floats = any ? limit / most : 0.0f;
  }
};

// Codes in [low, high] of sixteen floats (zero wherever the scale is zero, for NaN and infinity
// too).
inline vi codes16(vf x, float of_floats, int low, int high) {
  if (of_floats == 0.0f) return vi{};
  vi q = round16(x * of_floats);
  q = q > high ? vi{} + high : q;
  return q < low ? vi{} + low : q;
}

}  // namespace fd

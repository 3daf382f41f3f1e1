// Exact dot products of int8 and int4 codes, four steps of k (a quad) of several columns at a time.
//
// With VNNI the unsigned operand is the weight, lifted by kLift: a sum begins with -kLift * (sum of
// the row's codes). It also begins with kDotBase, the bits of the float 1.5 * 2^23: while the
// products of codes add up to less than 2^22, its bits then are those of 1.5 * 2^23 + sum, and a
// subtraction of floats widens it exactly (a conversion takes the products' execution ports).
// Elsewhere the codes are widened to int16 and nothing is lifted or added.
#pragma once
#include "fd/quant_panels.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fd {
namespace gemm {

#if defined(__AVX512VNNI__)
constexpr int kDotColumns = 16, kDotAccumulators = 24;
typedef int8_t Code;  // of activations
typedef __m512i DotSum;
typedef __m512i DotWeight;
typedef __m512i DotQuad;

constexpr int32_t kDotBase = 0x4b400000;

// Begins the sums of a row whose codes add up to `sum`.
template <int32_t Lift>
inline DotSum dot_start(int32_t sum) {
  const __m512i lift = _mm512_mullo_epi32(_mm512_set1_epi32(sum), _mm512_set1_epi32(Lift));
  return _mm512_sub_epi32(_mm512_set1_epi32(kDotBase), lift);
}
inline vf dot_float(DotSum sum) {
  return reinterpret_cast<vf>(sum) - as_float(static_cast<uint32_t>(kDotBase));
}
// The float of a sum times a bfloat16 scale below 2^103, rounded once: the product of the scale and
// the base is exact.
inline vf dot_float(DotSum sum, vf scale) {
  const vf base = scale * as_float(static_cast<uint32_t>(kDotBase));
  return reinterpret_cast<vf>(_mm512_fmsub_ps(reinterpret_cast<__m512>(sum),
                                              reinterpret_cast<__m512>(scale),
                                              reinterpret_cast<__m512>(base)));
}
inline DotQuad dot_quad(const Code* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof(four));
  return _mm512_set1_epi32(four);
}
// Spelt out: GCC 12 keeps a second copy of each sum for the code behind the loop otherwise.
inline DotSum dot(DotSum sum, DotWeight w, DotQuad x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}
// The same with a lift of -by[column]. Both fit in 16 bits, whose products are cheaper.
inline DotSum dot_start(int32_t sum, const int32_t* by) {
  const __m512i low = _mm512_set1_epi32(sum & 0xffff);
  const __m512i lift = _mm512_madd_epi16(low, _mm512_loadu_si512(by));
  return _mm512_add_epi32(_mm512_set1_epi32(kDotBase), lift);
}
// to[column] += sum (* w_scale[column]) * x_scale
template <bool Scaled>
inline void dot_add(float* to, DotSum sum, float x_scale, const float* w_scale) {
  const vf wide = Scaled ? dot_float(sum, load16(w_scale)) : dot_float(sum);
  store16(to, load16(to) + wide * x_scale);
}

#else
// Two (or four) sums of a column lie side by side, each of every second (fourth) step.
typedef int16_t Code;
#if defined(__AVX2__)
constexpr int kDotColumns = 4, kDotParts = 2, kDotAccumulators = 12;
typedef __m256i DotSum;
typedef __m256i DotWeight;
typedef __m256i DotQuad;
template <int32_t>
inline DotSum dot_start(int32_t) {
  return _mm256_setzero_si256();
}
inline DotWeight widen_codes(const int8_t* codes) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
}
inline DotQuad dot_quad(const Code* x) {
  int64_t four;
  std::memcpy(&four, x, sizeof(four));
  return _mm256_set1_epi64x(four);
}
inline DotSum dot(DotSum sum, DotWeight w, DotQuad x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
}
#elif defined(__SSE2__)
constexpr int kDotColumns = 2, kDotParts = 2, kDotAccumulators = 12;
typedef __m128i DotSum;
typedef __m128i DotWeight;
typedef __m128i DotQuad;
template <int32_t>
inline DotSum dot_start(int32_t) {
  return _mm_setzero_si128();
}
inline DotWeight widen_codes(const int8_t* codes) {
  const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm_srai_epi16(_mm_unpacklo_epi8(v, v), 8);
}
inline DotQuad dot_quad(const Code* x) {
  int64_t four;
  std::memcpy(&four, x, sizeof(four));
  return _mm_set1_epi64x(four);
}
inline DotSum dot(DotSum sum, DotWeight w, DotQuad x) {
  return _mm_add_epi32(sum, _mm_madd_epi16(w, x));
}
#else
constexpr int kDotColumns = 2, kDotParts = 4, kDotAccumulators = 12;
typedef int32_t DotSum __attribute__((vector_size(32)));
typedef int32_t DotWeight __attribute__((vector_size(32)));
typedef int32_t DotQuad __attribute__((vector_size(32)));
template <int32_t>
inline DotSum dot_start(int32_t) {
  return DotSum{};
}
inline DotWeight widen_codes(const int8_t* codes) {
  typedef int8_t Eight __attribute__((vector_size(8)));
  return __builtin_convertvector(load_as<Eight>(codes), DotWeight);
}
inline DotQuad dot_quad(const Code* x) {
  return DotQuad{x[0], x[1], x[2], x[3], x[0], x[1], x[2], x[3]};
}
inline DotSum dot(DotSum sum, DotWeight w, DotQuad x) { return sum + w * x; }
#endif

// by[column] * sum in every column.
inline DotSum dot_start(int32_t sum, const int32_t* by) {
  int32_t parts[kDotColumns * kDotParts] = {};
  for (int c = 0; c < kDotColumns; ++c) parts[c * kDotParts] = by[c] * sum;
  return load_as<DotSum>(parts);
}
// to[column] += sum (* w_scale[column]) * x_scale
template <bool Scaled>
inline void dot_add(float* to, DotSum sum, float x_scale, const float* w_scale) {
  int32_t parts[kDotColumns * kDotParts];
  std::memcpy(parts, &sum, sizeof(parts));
  for (int c = 0; c < kDotColumns; ++c) {
    int32_t all = 0;
    for (int i = 0; i < kDotParts; ++i) all += parts[c * kDotParts + i];
    const float wide = static_cast<float>(all);
    if (Scaled)
      to[c] += (wide * w_scale[c]) * x_scale;
    else
      to[c] += wide * x_scale;
  }
}
#endif

constexpr int kDotUnits = kPanel / kDotColumns;  // accumulators of a panel and row
constexpr int kDotRows = kDotAccumulators / 2;   // rows of the tallest tile

// Unit u of a quad: columns [u * kDotColumns, (u + 1) * kDotColumns).
struct Int8Dot {
  static constexpr int64_t kQuadBytes = kInt8Quad, kHeader = 0;
#if defined(__AVX512VNNI__)
  static constexpr int32_t kLift = 128;
  static DotWeight load(const uint8_t* quad, int u) {
    return _mm512_xor_si512(_mm512_loadu_si512(quad + u * 64), _mm512_set1_epi8(-128));
  }
#else
  static constexpr int32_t kLift = 0;
  static DotWeight load(const uint8_t* quad, int u) {
    return widen_codes(reinterpret_cast<const int8_t*>(quad + u * kDotColumns * kQuad));
  }
#endif
};

struct Int4Dot {
  static constexpr int64_t kQuadBytes = kInt4Quad, kHeader = kInt4Scales;
#if defined(__AVX512VNNI__)
  static constexpr int32_t kLift = 8;
  static DotWeight load(const uint8_t* quad, int u) {
    const __m512i both = _mm512_xor_si512(_mm512_loadu_si512(quad), _mm512_set1_epi8(-120));
    return _mm512_and_si512(u == 0 ? both : _mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
  }
#else
  static constexpr int32_t kLift = 0;
  static DotWeight load(const uint8_t* quad, int u) {
    typedef int8_t Bytes __attribute__((vector_size(kDotColumns * kQuad)));
    constexpr int kHalf = kDotUnits / 2;
    const Bytes both = load_as<Bytes>(quad + u % kHalf * kDotColumns * kQuad);
    const Bytes codes = (((u < kHalf ? both : both >> 4) & 15) ^ 8) - 8;
    return widen_codes(reinterpret_cast<const int8_t*>(&codes));
  }
#endif
};

// With zero points: a sum begins with -(kLift + zero point) * (sum of the row's codes).
struct Int4ZeroDot : Int4Dot {
  static constexpr int64_t kHeader = kInt4Scales + kInt4Zeros;
};

}  // namespace gemm
}  // namespace fd

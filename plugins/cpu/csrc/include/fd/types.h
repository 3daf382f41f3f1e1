// Storage types and their conversions to float, alone and sixteen at a time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fd {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Sixteen lanes; the compiler splits them where registers are narrower, with the same results.
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
constexpr int kLanes = 16;

inline uint32_t as_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float as_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// ---- scalar ----
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(f16 h) {
#if defined(__F16C__)
  return _cvtsh_ss(h.bits);
#else
  // Subnormals and normals alike: shift the payload up and rescale; infinities and NaN separately.
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) return as_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  return as_float(sign | as_bits(as_float(rest << 13) * as_float(0x77800000u)));  // * 2^112
#endif
}

template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
// Round to nearest even; NaN stays a quiet NaN.
template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t u = as_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
template <>
inline f16 from_float<f16>(float x) {
#if defined(__F16C__)
  return f16{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t u = as_bits(x), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
  if (mag > 0x7f800000u) return f16{static_cast<uint16_t>(sign | 0x7e00u | ((mag >> 13) & 0x3ffu))};
  if (mag >= 0x477ff000u) return f16{static_cast<uint16_t>(sign | 0x7c00u)};  // >= 65520
  if (mag < 0x38800000u) {  // below 2^-14: the addition rounds into the subnormal grid
    const float shifted = as_float(mag) + 0.5f;
    return f16{static_cast<uint16_t>(sign | (as_bits(shifted) - 0x3f000000u))};
  }
  return f16{static_cast<uint16_t>(sign | ((mag + 0xc8000fffu + ((mag >> 13) & 1u)) >> 13))};
#endif
}

// ---- sixteen lanes (unaligned) ----
inline vf splat(float x) { return vf{} + x; }

inline vf load16(const float* p) {
  vf v;
  std::memcpy(&v, p, 64);
  return v;
}
inline vf load16(const bf16* p) {
#if defined(__AVX512F__)  // GCC 12 widens a vh in two halves and joins them
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<vf>(reinterpret_cast<vu>(_mm512_maskz_cvtepu16_epi32(0xffff, h)) << 16);
#else
  vh h;
  std::memcpy(&h, p, 32);
  const vu u = __builtin_convertvector(h, vu) << 16;
  return reinterpret_cast<vf>(u);
#endif
}
inline vf load16(const f16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
  vf v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

inline void store16(float* p, vf v) { std::memcpy(p, &v, 64); }
inline void store16(bf16* p, vf v) {
  const vu u = reinterpret_cast<vu>(v);
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
#if defined(__AVX512F__)
  const __mmask16 nan =
      _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(v), _CMP_UNORD_Q);
  const __m512i narrow =
      _mm512_mask_or_epi32(reinterpret_cast<__m512i>(rounded), nan,
                           reinterpret_cast<__m512i>(u >> 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, narrow));
#else
  const vu quiet = (u >> 16) | 0x40u;
  // All ones where |v| > inf, by sign: GCC 12 takes a comparison wider than a register apart.
  const vu is_nan =
      reinterpret_cast<vu>(reinterpret_cast<vi>(0x7f800000u - (u & 0x7fffffffu)) >> 31);
  const vh h = __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), vh);
  std::memcpy(p, &h, 32);
#endif
}
inline void store16(f16* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<f16>(v[i]);
#endif
}

// The first n < 16 lanes; the others read as zero / are not written.
template <typename T>
inline vf load_tail(const T* p, int n) {
  vf v{};
  for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}
template <typename T>
inline void store_tail(T* p, vf v, int n) {
  for (int i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}

// Fixed tree: the same sum on every ISA for the same lanes.
inline float sum16(vf v) {
  float s[8], t[4];
  for (int i = 0; i < 8; ++i) s[i] = v[i] + v[i + 8];
  for (int i = 0; i < 4; ++i) t[i] = s[i] + s[i + 4];
  return (t[0] + t[2]) + (t[1] + t[3]);
}
// No lane is NaN.
inline float max16(vf v) {
#if defined(__AVX512F__)  // the loop below is a chain of sixteen
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  const Half a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  const Half b = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const Half m = a > b ? a : b;
  const Quarter c = __builtin_shufflevector(m, m, 0, 1, 2, 3);
  const Quarter d = __builtin_shufflevector(m, m, 4, 5, 6, 7);
  const Quarter most = c > d ? c : d;
  return std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
#else
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
#endif
}

}  // namespace fd

// Elementary functions, sixteen lanes at a time and alone.
//
// One template serves both widths, so vexp(x)[i] == expf_(x[i]) bit for bit. A level with FMA and
// one without may differ in the last bit; on one machine the results never depend on the
// neighbours. Infinities, NaN, subnormal results and signed zeros come out as IEEE 754 wants them.
#pragma once
#include "fd/types.h"

namespace fd {
namespace detail {

inline uint32_t bits_of(float x) { return as_bits(x); }
inline vu bits_of(vf x) { return reinterpret_cast<vu>(x); }
inline float float_of(uint32_t u) { return as_float(u); }
inline vf float_of(vu u) { return reinterpret_cast<vf>(u); }

// x where it lies in [lo, hi], else the nearer end; NaN stays NaN.
inline vf clamp(vf x, float lo, float hi) {
#if defined(__AVX512F__)  // of two operands the second is taken where either is NaN
  const __m512 low = _mm512_max_ps(_mm512_set1_ps(lo), reinterpret_cast<__m512>(x));
  return reinterpret_cast<vf>(_mm512_min_ps(_mm512_set1_ps(hi), low));
#else  // GCC takes the selection above apart lane by lane where a vector is several registers
  for (int i = 0; i < kLanes; ++i) {
    const float a = x[i] < lo ? lo : x[i];
    x[i] = a > hi ? hi : a;
  }
  return x;
#endif
}
inline float clamp(float x, float lo, float hi) {
  const float a = x < lo ? lo : x;
  return a > hi ? hi : a;
}

// Lanes of `yes` where x < limit, of `no` elsewhere and where x is NaN; x >= 0, limit > 0. By the
// sign of a difference of bits: GCC 12 takes a comparison wider than a register apart.
inline float pick_below(float x, float limit, float yes, float no) { return x < limit ? yes : no; }
inline vf pick_below(vf x, float limit, vf yes, vf no) {
  const vu mask = reinterpret_cast<vu>(reinterpret_cast<vi>(bits_of(x) - as_bits(limit)) >> 31);
  return float_of((bits_of(yes) & mask) | (bits_of(no) & ~mask));
}

// y * 2^n for y near 1 and whole n in [-151, 129], rounded once; `shifted` = n + 1.5 * 2^23. In two
// factors, so the result may overflow or be subnormal.
template <typename F>
inline F times_power(F y, F shifted) {
  const auto k = bits_of(shifted) - 0x4b400000u + 300u;  // n + 300 > 0
  const auto half = k >> 1;
  return y * float_of((half - 23u) << 23) * float_of((k - half - 23u) << 23);
}
#if defined(__AVX512F__)
inline vf times_power(vf y, vf shifted) {
  const vf n = shifted - 12582912.0f;
  return reinterpret_cast<vf>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(y), reinterpret_cast<__m512>(n)));
}
#endif

// exp(x) = 2^n * exp(r), n = rint(x / ln 2), |r| <= ln 2 / 2. ln 2 is split so that n * kLn2Hi is
// exact. Every product has one use: whether it is fused with its sum cannot depend on the code
// around it.
template <typename F>
inline F exp_of(F x) {
  constexpr float kLog2e = 1.44269504f, kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = clamp(x, -104.0f, 89.0f);
  const F shifted = x * kLog2e + kRound;
  const F n = shifted - kRound;
  const F r = x - n * kLn2Hi - n * kLn2Lo;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return times_power((p * (r * r) + r) + 1.0f, shifted);
}

// tanh: an odd polynomial near zero (no cancellation), 1 - 2 / (exp(2|x|) + 1) elsewhere.
template <typename F>
inline F tanh_of(F x) {
  const auto sign = bits_of(x) & 0x80000000u;
  const F a = float_of(bits_of(x) ^ sign);
  const F z = a * a;
  F p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z + -5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z + -3.33332819422e-1f;
  const F small = p * (z * a) + a;
  const F large = 1.0f - 2.0f / (exp_of(a + a) + 1.0f);
  return float_of(bits_of(pick_below(a, 0.625f, small, large)) | sign);
}

template <typename F>
inline F sigmoid_of(F x) {
  return 1.0f / (1.0f + exp_of(-x));
}

template <typename F>
inline F silu_of(F x) {
  return x / (1.0f + exp_of(-x));
}

// (1 + tanh(u)) / 2 == sigmoid(2u), which does not cancel for negative u.
template <typename F>
inline F gelu_tanh_of(F x) {
  const F cube = x * x * x;
  const F u = (cube * 0.044715f + x) * 0.7978845608028654f;
  return x / (1.0f + exp_of(-2.0f * u));
}

}  // namespace detail

// exp within 2 ulp over the whole range: 0 below -103.97, inf above 88.7228394.
inline vf vexp(vf x) { return detail::exp_of(x); }
inline float expf_(float x) { return detail::exp_of(x); }

// tanh within 3 ulp.
inline vf vtanh(vf x) { return detail::tanh_of(x); }
inline float tanhf_(float x) { return detail::tanh_of(x); }

// 1 / (1 + exp(-x)); 0 below -88.73, where the true value is subnormal.
inline vf vsigmoid(vf x) { return detail::sigmoid_of(x); }
inline float sigmoidf_(float x) { return detail::sigmoid_of(x); }

// x * sigmoid(x); NaN at -inf, as the product is.
inline vf vsilu(vf x) { return detail::silu_of(x); }
inline float siluf_(float x) { return detail::silu_of(x); }

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
inline vf vgelu_tanh(vf x) { return detail::gelu_tanh_of(x); }
inline float gelu_tanhf_(float x) { return detail::gelu_tanh_of(x); }

}  // namespace fd

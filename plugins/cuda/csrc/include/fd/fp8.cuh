// float8_e4m3fn: 1 sign, 4 exponent, 3 mantissa bits, bias 7, no infinity, 0x7f = NaN, largest 448.
#pragma once
#include "fd/types.h"

namespace fd {

struct e4m3 {
  uint8_t bits;
};

constexpr float kE4m3Largest = 448.f;

// Nearest code, ties to even, saturating; NaN becomes 0x7f. For any architecture.
__device__ __forceinline__ uint32_t e4m3_by_bits(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u;
  uint32_t mag = bits & 0x7fffffffu;
  if (mag > 0x7f800000u) return 0x7fu;
  mag = mag > 0x43e00000u ? 0x43e00000u : mag;
  if (mag >= 0x3c800000u)  // bias 127 -> 7
    return sign | (((mag + 0x7ffffu + (mag >> 20 & 1u)) >> 20) - 960u);
  // Below 2^-6 the grid is 2^-9, the spacing of floats at 2^14: the addition rounds to it.
  return sign | (__float_as_uint(__uint_as_float(mag) + 16384.f) - 0x46800000u);
}

// Codes of a (low byte) and b.
__device__ __forceinline__ uint16_t e4m3_pair(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(b), "f"(a));
  return both;
#else
  return static_cast<uint16_t>(e4m3_by_bits(a) | e4m3_by_bits(b) << 8);
#endif
}

__device__ __forceinline__ e4m3 to_e4m3(float x) {
  return {static_cast<uint8_t>(e4m3_pair(x, 0.f) & 0xffu)};
}

// The code's value, exactly.
__device__ __forceinline__ float to_float(e4m3 x) {
  const uint32_t mag = x.bits & 0x7fu, sign = (x.bits & 0x80u) << 24;
  if (mag == 0x7fu) return __uint_as_float(0x7fc00000u);
  return __uint_as_float(__float_as_uint(__uint_as_float(mag << 20) * 0x1p120f) | sign);
}

// Codes of N floats.
template <int N>
__device__ __forceinline__ Vec<e4m3, N> e4m3_codes(const float (&x)[N]) {
  Vec<e4m3, N> codes;
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const uint16_t both = e4m3_pair(x[i], i + 1 < N ? x[(i + 1) % N] : 0.f);
    codes[i].bits = both & 0xffu;
    if (i + 1 < N) codes[(i + 1) % N].bits = both >> 8;
  }
  return codes;
}

// Magnitudes order like their bits, NaN above infinity: the largest is NaN if one is.
__device__ __forceinline__ uint32_t magnitude_bits(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}
// Largest over groups of `lanes` neighbours, a power of two.
__device__ __forceinline__ uint32_t group_max(uint32_t x, int lanes) {
  for (int d = lanes / 2; d > 0; d /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, d));
  return x;
}

}  // namespace fd

// float8_e4m3fn: 1 sign, 4 exponent, 3 mantissa bits, bias 7, no infinity, 0x7f = NaN, largest 448.
#pragma once
#include "fd/check.h"

namespace fd {

struct e4m3 {
  uint8_t bits;
};
template <>
struct DTypeOf<e4m3> {
  static constexpr uint8_t code = kDLFloat8_e4m3fn, bits = 8;
};

constexpr float kE4m3Largest = 448.0f;

// Codes of sixteen floats, round to nearest even, saturating at 448; NaN becomes 0x7f.
inline vu e4m3_codes(vf x) {
  const vu u = reinterpret_cast<vu>(x), mag = u & 0x7fffffffu;
  const vu large = reinterpret_cast<vu>(mag > 0x43e00000u);
  const vu kept = (mag & ~large) | (0x43e00000u & large);
  const vu normal = ((kept + 0x7ffffu + ((kept >> 20) & 1u)) >> 20) - 960u;  // bias 127 -> 7
  // Below 2^-6 the grid is 2^-9, which is the spacing of floats at 2^14: the addition rounds to it.
  const vu small = reinterpret_cast<vu>(reinterpret_cast<vf>(kept) + 16384.0f) - 0x46800000u;
  const vu tiny = reinterpret_cast<vu>(kept < 0x3c800000u);
  const vu code = ((small & tiny) | (normal & ~tiny)) | ((u >> 24) & 0x80u);
  const vu nan = reinterpret_cast<vu>(mag > 0x7f800000u);
  return (code & ~nan) | (0x7fu & nan);
}

// Sixteen codes to floats, exactly; 0x7f and 0xff become NaN.
inline vf e4m3_floats(const uint8_t* p) {
  typedef uint8_t vb __attribute__((vector_size(16)));
  vb bytes;
  std::memcpy(&bytes, p, 16);
  const vu code = __builtin_convertvector(bytes, vu), mag = code & 0x7fu;
  const vu sign = (code & 0x80u) << 24, nan = reinterpret_cast<vu>(mag == 0x7fu) & 0x7fc00000u;
  const vf size = reinterpret_cast<vf>(mag << 20) * as_float(0x7b800000u);  // * 2^120
  return reinterpret_cast<vf>(reinterpret_cast<vu>(size) | sign | nan);
}

inline void store_codes(uint8_t* p, vu codes, int n) {
  typedef uint8_t vb __attribute__((vector_size(16)));
  const vb bytes = __builtin_convertvector(codes, vb);
  std::memcpy(p, &bytes, n);
}

}  // namespace fd

// Values that are not finite. A key that a row does not see has weight zero there, but zero times
// NaN is NaN: where rows of a tile see different keys, such values are taken out of the tile before
// it is multiplied, and added to the rows that do see them.
#pragma once
#include "fd/types.h"

namespace fd {

// Whether element `half` (0 or 1) of a word is an infinity or NaN.
template <typename T>
__device__ __forceinline__ bool wild_half(uint32_t word, int half);
template <>
__device__ __forceinline__ bool wild_half<bf16>(uint32_t word, int half) {
  return (~(word >> 16 * half) & 0x7f80u) == 0;
}
template <>
__device__ __forceinline__ bool wild_half<f16>(uint32_t word, int half) {
  return (~(word >> 16 * half) & 0x7c00u) == 0;
}

// Elements of 16 bytes that are not finite become zero; whether there were any.
template <typename T>
__device__ __forceinline__ bool tame(uint4& pack) {
  uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
  bool wild = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (wild_half<T>(words[i], 0)) words[i] &= 0xffff0000u, wild = true;
    if (wild_half<T>(words[i], 1)) words[i] &= 0x0000ffffu, wild = true;
  }
  pack = make_uint4(words[0], words[1], words[2], words[3]);
  return wild;
}

// The part of x that `tame` takes out.
__device__ __forceinline__ float wild_part(float x) { return fabsf(x) < INFINITY ? 0.f : x; }

}  // namespace fd

// Int4 weights with zero points, in packed_weights.cuh's order: (code - zero) * scale, with a scale
// and a zero point for every row and group.
//
// A zero point is any int8: what is left of a code is a whole number of at most 135, which bfloat16
// holds exactly.
#pragma once
#include "fd/packed_weights.cuh"

namespace fd {

// Of a window: eight pairs of bfloat16 scales, then of int8 zero points, of rows g and g + 8.
constexpr int kStepUnits = 3, kStepBytes = kStepUnits * 16, kStepZeros = 32;

// What int4_level takes off, for a zero point in each half's low byte.
template <typename T>
__device__ __forceinline__ uint32_t level_base(uint32_t zeros);
template <>
__device__ __forceinline__ uint32_t level_base<bf16>(uint32_t zeros) {
  return subtract2<bf16>(int8_pair<bf16>(zeros), 0xc290c290u);  // zero + 64 + 8
}
template <>
__device__ __forceinline__ uint32_t level_base<f16>(uint32_t zeros) {
  return subtract2<f16>(int8_pair<f16>(zeros), 0xe408e408u);  // zero + 1024 + 8
}

// Codes less zero points of nibbles I and I + 4 of a word of codes. In bfloat16 codes count from 64
// on in halves: with `base` up to 199, from 128 on it would not be exact.
template <typename T, int I>
__device__ __forceinline__ uint32_t int4_level(uint32_t word, uint32_t base) {
  if constexpr (std::is_same_v<T, f16>) {
    return subtract2<f16>(and_or(word >> (I * 4), 0x000f000fu, 0x64006400u), base);
  } else {
    const uint32_t at = I == 0 ? word << 1 : word >> (I * 4 - 1);
    return subtract2<bf16>(and_or(at, 0x001e001eu, 0x42804280u), base);
  }
}

// steps [ceil(columns / 16), ceil(depth / Group), kStepBytes].
template <typename T, int Group>
struct Int4ZeroWeights : PackedCodes<Group / 64> {
  // kExtra beyond kStepUnits: slots of codes start at 128 bytes.
  static constexpr int kWindow = Group, kExtra = 8;
  static constexpr int kDeep = 512 / Group, kFlat = 256 / Group, kBlocks = 2;
  using Codes = PackedCodes<Group / 64>;
  const uint4* steps;
  int64_t columns;

  __device__ __forceinline__ void fetch(uint4* slot, int tile, int window, int lane) const {
    this->fetch_codes(slot, tile, window, lane);
    const uint32_t at = static_cast<uint32_t>(tile * this->windows + window) * kStepUnits + lane;
    if (lane < kStepUnits) copy_async16(slot + 32 * Codes::kUnits + lane, steps + at);
  }
  __device__ __forceinline__ float2 window_scales(const uint4* slot, int lane) const {
    const auto* pairs = reinterpret_cast<const uint32_t*>(slot + 32 * Codes::kUnits);
    const uint32_t both = pairs[lane / 4];
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
  }
  __device__ __forceinline__ void operands(uint32_t (&a)[2][4], const uint4* slot, int s,
                                           int lane) const {
    const uint4 unit = slot[s / 2 * 32 + lane];
    const auto* steps_of = reinterpret_cast<const char*>(slot + 32 * Codes::kUnits);
    const uint32_t both = reinterpret_cast<const uint16_t*>(steps_of + kStepZeros)[lane / 4];
    const uint32_t twice = both * 0x00010001u;
    const uint32_t base[2] = {level_base<T>(twice), level_base<T>(twice >> 8)};
    levels(a[0], s % 2 ? unit.z : unit.x, base);
    levels(a[1], s % 2 ? unit.w : unit.y, base);
  }
  __device__ __forceinline__ float finish(float sum, int64_t) const { return sum; }
  __device__ __forceinline__ float2 row_scales(const uint4* slot, int64_t, int lane) const {
    return window_scales(slot, lane);
  }

 private:
  static __device__ __forceinline__ void levels(uint32_t (&a)[4], uint32_t word,
                                                const uint32_t (&base)[2]) {
    a[0] = int4_level<T, 0>(word, base[0]);
    a[1] = int4_level<T, 1>(word, base[1]);
    a[2] = int4_level<T, 2>(word, base[0]);
    a[3] = int4_level<T, 3>(word, base[1]);
  }
};

}  // namespace fd

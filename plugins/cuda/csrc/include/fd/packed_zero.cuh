// Int4 weights with zero points, in packed_weights.cuh's order: (code - zero) * scale, with a scale
// and a zero point for every row and group.
//
// Zero points are -8 to 119, kept with 8 added, so that a byte in front of them makes 128 + (zero +
// 8) or 1024 + (zero + 8) of them, and of codes the same: their differences are exact. Below -8 the
// scale's sign is turned: -1 - code, -1 - zero.
#pragma once
#include "fd/packed_weights.cuh"

namespace fd {

// Of a window: eight pairs of bfloat16 scales, then of zero points, of rows g and g + 8.
constexpr int kStepUnits = 3, kStepBytes = kStepUnits * 16, kStepZeros = 32;

// What int4_level takes off, twice: for zero point `Row` (0: g, 1: g + 8) of a pair.
template <typename T, int Row>
__device__ __forceinline__ uint32_t level_base(uint32_t zeros) {
  return __byte_perm(zeros, std::is_same_v<T, f16> ? 0x64u : 0x43u, Row == 0 ? 0x4040 : 0x4141);
}

// Codes less zero points of nibbles I and I + 4 of a word of codes.
template <typename T, int I>
__device__ __forceinline__ uint32_t int4_level(uint32_t word, uint32_t base) {
  constexpr uint32_t kCount = std::is_same_v<T, f16> ? 0x64006400u : 0x43004300u;
  return subtract2<T>(and_or(word >> (I * 4), 0x000f000fu, kCount), base);
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

  using Cursor = typename Codes::CodesCursor;

  __device__ __forceinline__ Cursor stream(int lane) const {
    const uint4* own = steps + (lane < kStepUnits ? lane : 0);
    return this->cursor(lane, reinterpret_cast<const uint32_t*>(own));
  }
  __device__ __forceinline__ void fetch(const Cursor& at, uint4* slot, uint32_t window,
                                        int lane) const {
    at.copy(slot, window, lane);
    fetch_steps(slot, at.scales + uint64_t{window} * (kStepUnits * 4), lane);
  }
  __device__ __forceinline__ void fetch(uint4* slot, int tile, int window, int lane) const {
    this->fetch_codes(slot, tile, window, lane);
    const uint32_t at = static_cast<uint32_t>(tile * this->windows + window) * kStepUnits;
    fetch_steps(slot, steps + at + (lane < kStepUnits ? lane : 0), lane);
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
    const uint32_t zeros = reinterpret_cast<const uint16_t*>(steps_of + kStepZeros)[lane / 4];
    const uint32_t base[2] = {level_base<T, 0>(zeros), level_base<T, 1>(zeros)};
    levels(a[0], s % 2 ? unit.z : unit.x, base);
    levels(a[1], s % 2 ? unit.w : unit.y, base);
  }
  __device__ __forceinline__ float finish(float sum, int64_t) const { return sum; }
  __device__ __forceinline__ float2 row_scales(const uint4* slot, int64_t, int lane) const {
    return window_scales(slot, lane);
  }

 private:
  // Lanes without a unit write zeros behind them: a branch costs more (measured: 26.5 -> 24.6 us
  // for 28672 x 4096 in groups of 64, one row, H200).
  static __device__ __forceinline__ void fetch_steps(uint4* slot, const void* from, int lane) {
    const bool has = lane < kStepUnits;
    copy_async16(slot + 32 * Codes::kUnits + (has ? lane : kStepUnits), from, has ? 16 : 0);
  }
  static __device__ __forceinline__ void levels(uint32_t (&a)[4], uint32_t word,
                                                const uint32_t (&base)[2]) {
    a[0] = int4_level<T, 0>(word, base[0]);
    a[1] = int4_level<T, 1>(word, base[1]);
    a[2] = int4_level<T, 2>(word, base[0]);
    a[3] = int4_level<T, 3>(word, base[1]);
  }
};

}  // namespace fd

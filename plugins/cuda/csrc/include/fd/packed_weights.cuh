// Integer weights in the order in which skinny.cuh multiplies them: 16 rows of W at a time, in
// units of 16 bytes, one for each lane of a warp.
//
// A lane 4 * g + t holds rows g and g + 8. With k = 32 * s + 8 * t + 4 * h + j (h < 2, j < 4):
//   int8: unit s, word 2 * h + j / 2; its bytes are row g and row g + 8 of even j, then of odd j
//   int4: unit s / 2, word 2 * (s % 2) + h; nibble j / 2 * 2 + j % 2 * 4 is row g (code + 8), the
//   next one
//         row g + 8
// so that masks and shifts alone make pairs of 16-bit floats of them. Rows and steps of k that fill
// up the last tile and window have code 0.
#pragma once
#include "fd/skinny.cuh"

namespace fd {

// Steps of k that a warp takes at once; of int4 codes in groups: a group.
constexpr int kInt8Window = 64, kInt4RowWindow = 128;

// Positions in a tile: for a quad of k (j = 0 .. 3) the first of its words.
__host__ __device__ constexpr int int8_word(int k, int lane_row) {
  return (k / 32 * 32 + lane_row * 4 + k % 32 / 8) * 4 + k % 8 / 4 * 2;
}
__host__ __device__ constexpr int int4_word(int k, int lane_row) {
  return (k / 64 * 32 + lane_row * 4 + k % 32 / 8) * 4 + k % 64 / 32 * 2 + k % 8 / 4;
}

// (x & mask) | bits, as one instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(x), "r"(mask), "r"(bits));
  return r;
}

template <typename T>
__device__ __forceinline__ uint32_t subtract2(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t subtract2<bf16>(uint32_t a, uint32_t b) {
#if FD_SM80
  const __nv_bfloat162 d = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                   *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&d);
#else
  return 0;
#endif
}
template <>
__device__ __forceinline__ uint32_t subtract2<f16>(uint32_t a, uint32_t b) {
#if FD_SM80
  const __half2 d =
      __hsub2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&d);
#else
  return 0;
#endif
}

// Two int8 codes in bits 0-7 and 16-23. bfloat16 has seven bits of mantissa: 128 + the low seven,
// less 128, or less 256 where the sign is set. float16 has ten: 1024 + (code + 128), less 1152.
template <typename T>
__device__ __forceinline__ uint32_t int8_pair(uint32_t x);
template <>
__device__ __forceinline__ uint32_t int8_pair<bf16>(uint32_t x) {
  return subtract2<bf16>(and_or(x, 0x007f007fu, 0x43004300u), and_or(x, 0x00800080u, 0x43004300u));
}
template <>
__device__ __forceinline__ uint32_t int8_pair<f16>(uint32_t x) {
  return subtract2<f16>(and_or(x ^ 0x00800080u, 0x00ff00ffu, 0x64006400u), 0x64806480u);
}

// Two int4 codes, stored with 8 added, in bits 0-3 and 16-19.
template <typename T>
__device__ __forceinline__ uint32_t int4_pair(uint32_t x);
template <>
__device__ __forceinline__ uint32_t int4_pair<bf16>(uint32_t x) {
  return subtract2<bf16>(and_or(x, 0x000f000fu, 0x43004300u), 0x43084308u);  // 128 + code, less 136
}
template <>
__device__ __forceinline__ uint32_t int4_pair<f16>(uint32_t x) {
  return subtract2<f16>(and_or(x, 0x000f000fu, 0x64006400u),
                        0x64086408u);  // 1024 + code, less 1032
}

// Scales [columns], one for each row of W: sums are scaled once, at their end.
struct ScaleByRow {
  static constexpr int kExtra = 0;
  const float* scales;
  int64_t columns;

  __device__ __forceinline__ float finish(float sum, int64_t n) const {
    return __fmul_rn(sum, scales[n]);  // not joined with the bias: the bits are every kernel's
  }
  // Of rows g and g + 8 of a tile, wherever they are kept.
  __device__ __forceinline__ float2 row_scales(const uint4*, int64_t tile, int lane) const {
    const int64_t n = tile * kSkinnyTile + lane / 4;
    return {n < columns ? scales[n] : 0.f, n + 8 < columns ? scales[n + 8] : 0.f};
  }
};

// codes [ceil(columns / 16), ceil(depth / Window), 16 * Window codes]; `windows`: of a tile. Units
// are counted in 32 bits.
template <int Units>
struct PackedCodes {
  static constexpr int kUnits = Units;
  const uint4* codes;
  int windows;

  // A lane's place in all of it, for streams: windows in turn, of which a lane reads what it
  // copied.
  struct CodesCursor {
    const uint4* codes;
    const uint32_t* scales;

    __device__ __forceinline__ void copy(uint4* slot, uint32_t window, int lane) const {
      const uint4* from = codes + uint64_t{window} * (32 * Units);
#pragma unroll
      for (int u = 0; u < Units; ++u) copy_async16(slot + u * 32 + lane, from + u * 32);
    }
  };
  __device__ __forceinline__ CodesCursor cursor(int lane, const uint32_t* scales) const {
    CodesCursor at{codes + lane, scales};
    asm volatile("" : "+l"(at.codes), "+l"(at.scales));  // not to be found anew for every window
    return at;
  }

  __device__ __forceinline__ void fetch_codes(uint4* slot, int tile, int window, int lane) const {
    const uint4* from =
        codes + static_cast<uint32_t>((tile * windows + window) * (32 * kUnits) + lane);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) copy_async16(slot + u * 32 + lane, from + u * 32);
  }
};

template <typename T>
struct Int8Weights : PackedCodes<2>, ScaleByRow {
  static constexpr int kWindow = kInt8Window, kDeep = 8, kFlat = 4, kBlocks = 2;
  using Cursor = PackedCodes<2>::CodesCursor;

  __device__ __forceinline__ Cursor stream(int lane) const { return cursor(lane, nullptr); }
  __device__ __forceinline__ void fetch(const Cursor& at, uint4* slot, uint32_t window,
                                        int lane) const {
    at.copy(slot, window, lane);
  }
  __device__ __forceinline__ void fetch(uint4* slot, int tile, int window, int lane) const {
    fetch_codes(slot, tile, window, lane);
  }
  __device__ __forceinline__ void operands(uint32_t (&a)[2][4], const uint4* slot, int s,
                                           int lane) const {
    const uint4 unit = slot[s * 32 + lane];
    const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = int8_pair<T>(words[i / 2] >> (i % 2 * 8));
  }
};

template <typename T>
__device__ __forceinline__ void int4_operands(uint32_t (&a)[2][4], const uint4* slot, int s,
                                              int lane) {
  const uint4 unit = slot[s / 2 * 32 + lane];
  const uint32_t words[2] = {s % 2 ? unit.z : unit.x, s % 2 ? unit.w : unit.y};
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = int4_pair<T>(words[i / 4] >> (i % 4 * 4));
}

// Int4 codes under one scale for each row.
template <typename T>
struct Int4RowWeights : PackedCodes<kInt4RowWindow / 64>, ScaleByRow {
  static constexpr int kWindow = kInt4RowWindow, kDeep = 4, kFlat = 2, kBlocks = 2;
  using Cursor = PackedCodes<kInt4RowWindow / 64>::CodesCursor;

  __device__ __forceinline__ Cursor stream(int lane) const { return cursor(lane, nullptr); }
  __device__ __forceinline__ void fetch(const Cursor& at, uint4* slot, uint32_t window,
                                        int lane) const {
    at.copy(slot, window, lane);
  }
  __device__ __forceinline__ void fetch(uint4* slot, int tile, int window, int lane) const {
    fetch_codes(slot, tile, window, lane);
  }
  __device__ __forceinline__ void operands(uint32_t (&a)[2][4], const uint4* slot, int s,
                                           int lane) const {
    int4_operands<T>(a, slot, s, lane);
  }
};

// Int4 codes under a scale for each row and group: scales [ceil(columns / 16), ceil(depth / Group),
// 8, 2], those of rows g and g + 8 together.
template <typename T, int Group>
struct Int4Weights : PackedCodes<Group / 64> {
  static constexpr int kWindow = Group, kExtra = 8;
  static constexpr int kDeep = 512 / Group, kFlat = 256 / Group, kBlocks = 2;
  using Codes = PackedCodes<Group / 64>;
  const uint32_t* scales;  // two bfloat16 each
  int64_t columns;
  using Cursor = typename Codes::CodesCursor;

  __device__ __forceinline__ Cursor stream(int lane) const {
    return this->cursor(lane, scales + lane / 4);
  }
  __device__ __forceinline__ void fetch(const Cursor& at, uint4* slot, uint32_t window,
                                        int lane) const {
    at.copy(slot, window, lane);
    copy_async4(reinterpret_cast<uint32_t*>(slot + 32 * Codes::kUnits) + lane,
                at.scales + uint64_t{window} * 8);
  }
  __device__ __forceinline__ void fetch(uint4* slot, int tile, int window, int lane) const {
    this->fetch_codes(slot, tile, window, lane);
    const uint32_t at = static_cast<uint32_t>(tile * this->windows + window) * 8;
    copy_async4(reinterpret_cast<uint32_t*>(slot + 32 * Codes::kUnits) + lane,
                scales + at + lane / 4);
  }
  __device__ __forceinline__ float2 window_scales(const uint4* slot, int lane) const {
    const uint32_t both = reinterpret_cast<const uint32_t*>(slot + 32 * Codes::kUnits)[lane];
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
  }
  __device__ __forceinline__ void operands(uint32_t (&a)[2][4], const uint4* slot, int s,
                                           int lane) const {
    int4_operands<T>(a, slot, s, lane);
  }
  __device__ __forceinline__ float finish(float sum, int64_t) const { return sum; }
  __device__ __forceinline__ float2 row_scales(const uint4* slot, int64_t, int lane) const {
    return window_scales(slot, lane);
  }
};

}  // namespace fd

// What attention over quantised caches knows of a code's type: how queries meet the codes of keys,
// and how codes of values become 16-bit elements.
#pragma once
#include "fd/attention_split.cuh"
#include "fd/fp8.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define FD_SM89 1
#else
#define FD_SM89 0
#endif

namespace fd {

// 2^(e - exponent of the float whose bits these are), for exponents that leave it a normal float.
__device__ __forceinline__ float power_below(uint32_t bits, int e) {
  return __uint_as_float(static_cast<uint32_t>(254 + e - static_cast<int>(bits >> 23)) << 23);
}

// Products of f16 that a weight takes part in: in float16 models what rounding leaves of it, too,
// since where few keys count its rounding may show beside that of the result.
template <typename T>
constexpr int kCodeParts = 1;
template <>
constexpr int kCodeParts<f16> = 2;

// Two weights as `Parts` pairs of f16, which add up to them.
template <int Parts>
__device__ __forceinline__ void code_weights(float low, float high, uint32_t (&pairs)[Parts]) {
#pragma unroll
  for (int p = 0; p < Parts; ++p) {
    pairs[p] = pack2<f16>(low, high);
    const Vec<f16, 2> taken = *reinterpret_cast<const Vec<f16, 2>*>(&pairs[p]);
    low -= to_float(taken[0]), high -= to_float(taken[1]);
  }
}

// The warp's largest.
__device__ __forceinline__ uint32_t warp_most(uint32_t x) {
#if FD_SM80
  return __reduce_max_sync(~0u, x);
#else
  return x;
#endif
}

// A row of queries, 8 elements in each of a lane's `Packs`, a group of four lanes all of it: how it
// is scaled to magnitudes below 2^(Top + 1), exactly. Rows below 2^-90 count as zero; where an
// element is not finite, `unit` is NaN.
template <typename T, int Packs, int Top>
struct RowScale {
  float scale, unit;  // of elements; what products of scaled ones are times

  __device__ __forceinline__ explicit RowScale(const uint4 (&pack)[Packs]) {
    uint32_t most = 0;
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      const Vec<T, 8> x = *reinterpret_cast<const Vec<T, 8>*>(&pack[p]);
#pragma unroll
      for (int i = 0; i < 8; ++i) most = max(most, magnitude_bits(to_float(x[i])));
    }
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    const bool finite = most < 0x7f800000u, usable = finite && most > 0x12800000u;
    scale = usable ? power_below(most, Top) : 0.f;
    const uint32_t inverse = ((most >> 23) - Top) << 23;
    unit = __uint_as_float(usable ? inverse : finite ? 0u : 0x7fc00000u);
  }
  __device__ __forceinline__ float of(T x) const {
    return scale == 0.f ? 0.f : to_float(x) * scale;
  }
};

// Integers. Queries have three digits to base 256, which hold 22 bits below the row's largest
// element; products with codes are integer products, their sums exact.
struct Int8Codes {
  static constexpr bool kFinite = true;  // what becomes of codes whatever their bits
  static constexpr float kUnit = 1.f;    // what the elements that codes become are to be times
  static constexpr float kPlaced = 1.f;  // the same for `widen`

  // Eight rows, lane = 4 * g + t: this lane's part of row g.
  template <typename T, int D>
  struct Queries {
    uint32_t digits[3][D / 32][2];
    float unit;

    // pack[p]: elements that meet the words 2p and 2p + 1 of a key.
    __device__ __forceinline__ void take(const uint4 (&pack)[D / 32]) {
      const RowScale<T, D / 32, 21> row(pack);
      unit = row.unit;
#pragma unroll
      for (int p = 0; p < D / 32; ++p) {
        const Vec<T, 8> x = *reinterpret_cast<const Vec<T, 8>*>(&pack[p]);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          int n[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) n[i] = __float2int_rn(row.of(x[4 * w + i]));
          split(n, p, w);
        }
      }
    }
    // Digits from -128 to 127 are the bytes of a number that had 128 added in the lower two places.
    __device__ __forceinline__ void split(const int (&n)[4], int p, int w) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = static_cast<uint32_t>(n[i] + 0x8080);
      const uint32_t low = __byte_perm(x[0], x[1], 0x5140), high = __byte_perm(x[2], x[3], 0x5140);
      digits[0][p][w] = __byte_perm(low, high, 0x5410) ^ 0x80808080u;
      digits[1][p][w] = __byte_perm(low, high, 0x7632) ^ 0x80808080u;
      digits[2][p][w] =
          __byte_perm(__byte_perm(x[0], x[1], 0x0062), __byte_perm(x[2], x[3], 0x0062), 0x5410);
    }
  };

  // s[n]: key g, columns 2t and 2t + 1; then key g + 8. word(k, half): this lane's k-th of the key
  // g + 8 * half.
  template <typename T, int D, int N, typename Word>
  __device__ __forceinline__ static void multiply(const Queries<T, D> (&q)[N], Word word,
                                                  float (&s)[N][4]) {
    int32_t sum[N][3][4] = {};
#pragma unroll
    for (int p = 0; p < D / 32; ++p) {
      const uint32_t tile[4] = {word(2 * p, 0), word(2 * p, 1), word(2 * p + 1, 0),
                                word(2 * p + 1, 1)};
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int d = 0; d < 3; ++d) mma_16x8x16<int8x2>(sum[n][d], tile, q[n].digits[d][p]);
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[n][i] = static_cast<float>(sum[n][2][i]) * 65536.f +
                  static_cast<float>(sum[n][1][i] * 256 + sum[n][0][i]);
  }

  // Codes of four dimensions of two keys as pairs of f16, one for each dimension: 1024 + code +
  // 128, minus 1152.
  __device__ __forceinline__ static void pairs(uint32_t x, uint32_t y, uint32_t (&out)[4]) {
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      uint32_t both = __byte_perm(x, y, 0x11 * b + 0x1100 * (4 + b));
      asm("lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(both) : "r"(0x00ff00ffu), "r"(0x64806480u));
      asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out[b]) : "r"(both), "r"(0x64806480u));
    }
  }

  // Four codes of a row as two pairs.
  __device__ __forceinline__ static void widen(uint32_t x, uint32_t& low, uint32_t& high) {
    x ^= 0x80808080u;
    const uint32_t a = __byte_perm(x, 0x64646464u, 0x4140), b = __byte_perm(x, 0x64646464u, 0x4342);
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(low) : "r"(a), "r"(0x64806480u));
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(high) : "r"(b), "r"(0x64806480u));
  }
};

// Floats of 8 bits. sm_89 has an instruction for pairs of them; before, exponent and mantissa go to
// their places of f16, which is finite whatever the bits.
struct E4m3Codes {
  static constexpr float kPlaced = 256.f;  // what placed elements are to be times
#if FD_SM89
  static constexpr bool kFinite = false;
  static constexpr float kUnit = 1.f;
#else
  static constexpr bool kFinite = true;
  static constexpr float kUnit = kPlaced;
#endif

  template <typename T, int D>
  struct Queries {
    uint32_t half[D / 16][2];
    float unit;

    __device__ __forceinline__ void take(const uint4 (&pack)[D / 32]) {
      const RowScale<T, D / 32, 13> row(pack);
      unit = row.unit;
#pragma unroll
      for (int p = 0; p < D / 32; ++p) {
        const Vec<T, 8> x = *reinterpret_cast<const Vec<T, 8>*>(&pack[p]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          half[2 * p + i / 2][i % 2] = pack2<f16>(row.of(x[2 * i]), row.of(x[2 * i + 1]));
      }
    }
  };

  // `x` holds two codes in bytes 1 and 3, anything in 0 and 2.
  __device__ __forceinline__ static uint32_t placed(uint32_t x) {
    const uint32_t rest = x >> 1 & 0x3f803f80u;
    return (x & 0x80008000u) | rest;
  }

  template <typename T, int D, int N, typename Word>
  __device__ __forceinline__ static void multiply(const Queries<T, D> (&q)[N], Word word,
                                                  float (&s)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t tile[4];
      both(word(k, 0), tile[0], tile[2]);
      both(word(k, 1), tile[1], tile[3]);
#pragma unroll
      for (int n = 0; n < N; ++n) mma_16x8x16<f16>(s[n], tile, q[n].half[k]);
    }
  }

  // Four codes as two pairs.
  __device__ __forceinline__ static void both(uint32_t x, uint32_t& low, uint32_t& high) {
#if FD_SM89
    asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.rn.f16x2.e4m3x2 %0, a;\n"
        "cvt.rn.f16x2.e4m3x2 %1, b;\n}"
        : "=r"(low), "=r"(high)
        : "r"(x));
#else
    widen(x, low, high);
#endif
  }

  __device__ __forceinline__ static void pairs(uint32_t x, uint32_t y, uint32_t (&out)[4]) {
    both(__byte_perm(x, y, 0x5140), out[0], out[1]);
    both(__byte_perm(x, y, 0x7362), out[2], out[3]);
  }

  __device__ __forceinline__ static void widen(uint32_t x, uint32_t& low, uint32_t& high) {
    low = placed(__byte_perm(x, 0, 0x1100)), high = placed(__byte_perm(x, 0, 0x3322));
  }
};

}  // namespace fd

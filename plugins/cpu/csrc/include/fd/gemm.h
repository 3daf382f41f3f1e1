// Micro-kernels of dense products: the lanes are output columns.
//
// Every output element is one chain acc = fma(x[k], w[k], acc) over k = 0 .. K-1, begun at zero.
// Blocks of K continue the chain through float32 memory, so a row's result depends neither on the
// other rows nor on the blocking nor on the thread count.
//
// Weights lie in panels of 32 columns, [panels][K][32]. A bfloat16 panel row interleaves its halves
// (column j beside column 16 + j): one 32-bit lane then yields both with a shift and a mask.
#pragma once
#include <utility>

#include "fd/types.h"

namespace fd {
namespace gemm {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kAccumulators = 28;
#elif defined(__AVX__)
constexpr int kWidth = 8, kAccumulators = 12;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kAccumulators = 24;
#else
constexpr int kWidth = 4, kAccumulators = 12;
#endif
constexpr int kPanel = 32;          // columns of a panel
constexpr int kSubs = 16 / kWidth;  // a sub is a vector of either half: columns sV and 16 + sV
constexpr int kMaxRows = kAccumulators / 2;  // rows of the tallest tile
constexpr int kBlockK = 256;                 // k steps between two trips through memory
constexpr int kStrideX = kBlockK + 16;       // padded: rows of x at 4 KiB strides share a cache set
constexpr int kAhead = 8192;                 // bytes prefetched ahead, shared by a tile's streams

typedef float vw __attribute__((vector_size(4 * kWidth)));
typedef uint32_t vwu __attribute__((vector_size(4 * kWidth)));

typedef uint16_t vwh __attribute__((vector_size(2 * kWidth)));

struct Pair {
  vw lo, hi;
};

// bfloat16 columns in their natural order.
struct plain_bf16 {
  uint16_t bits;
};

template <typename V>
inline V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

// Vectors `sub` of both halves of one panel row.
inline Pair load_pair(const float* row, int sub) {
  return {load_as<vw>(row + sub * kWidth), load_as<vw>(row + 16 + sub * kWidth)};
}
inline Pair load_pair(const bf16* row, int sub) {
  const vwu both = load_as<vwu>(row + 2 * sub * kWidth);
  return {reinterpret_cast<vw>(both << 16), reinterpret_cast<vw>(both & 0xffff0000u)};
}
inline vw load_half(const plain_bf16* p) {
  const vwu wide = __builtin_convertvector(load_as<vwh>(p), vwu);
  return reinterpret_cast<vw>(wide << 16);
}
inline vw load_half(const f16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vw>(_mm512_cvtph_ps(load_as<__m256i>(p)));
#elif defined(__F16C__)
  return reinterpret_cast<vw>(_mm256_cvtph_ps(load_as<__m128i>(p)));
#else
  vw v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}
template <typename T>
inline Pair load_pair(const T* row, int sub) {
  return {load_half(row + sub * kWidth), load_half(row + 16 + sub * kWidth)};
}

// How a tile of R rows uses the registers: P panels at once (as many read streams), S subs of each.
constexpr int units(int rows) {
  int n = 1;
  while (n < 4 * kSubs && 4 * n * rows <= kAccumulators) n *= 2;
  return n;
}
constexpr int subs_at_once(int rows) { return units(rows) < kSubs ? units(rows) : kSubs; }
constexpr int panels_at_once(int rows) { return units(rows) / subs_at_once(rows); }

// The accumulators of one tile: P panels x S subs x R rows x both halves, kept in registers (every
// loop over them has constant bounds and is unrolled).
template <int P, int S, int R>
struct Accumulators {
  static constexpr int kCount = P * S * R * 2;
  vw a[P][S][R][2];

  vw& at(int i) { return a[i / (S * R * 2)][i / (R * 2) % S][i / 2 % R][i % 2]; }
  static float* address(float* c, int64_t ldc, int sub, int i) {
    const int p = i / (S * R * 2), s = i / (R * 2) % S, r = i / 2 % R, half = i % 2;
    return c + r * ldc + p * kPanel + half * 16 + (sub + s) * kWidth;
  }
  void load(float* c, int64_t ldc, int sub, bool fresh) {
#pragma GCC unroll 64
    for (int i = 0; i < kCount; ++i) at(i) = fresh ? vw{} : load_as<vw>(address(c, ldc, sub, i));
  }
  void store(float* c, int64_t ldc, int sub) {
#pragma GCC unroll 64
    for (int i = 0; i < kCount; ++i) std::memcpy(address(c, ldc, sub, i), &at(i), sizeof(vw));
  }
  // One step of k: x[r * kStrideX] times a panel row of panel p.
  template <typename T>
  void step(const float* x, const T* row, int p, int sub) {
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      const Pair pair = load_pair(row, sub + s);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        a[p][s][r][0] += pair.lo * x[r * kStrideX];
        a[p][s][r][1] += pair.hi * x[r * kStrideX];
      }
    }
  }
};

template <int P, typename T>
inline void prefetch_row(const T* row, int64_t step) {
  constexpr int kRows = kAhead / P / (kPanel * static_cast<int>(sizeof(T)));
  const char* ahead = reinterpret_cast<const char*>(row + kRows * step);
  __builtin_prefetch(ahead);
  if (sizeof(T) == 4) __builtin_prefetch(ahead + 64);
}

// c[R][P * 32] (+)= x[R][kc] * w[p][kc][32]; `fresh`: c is not read. Rows of x are kStrideX apart,
// rows of a panel `step`. `Stream`: the weights come from memory.
template <typename T, int P, int S, int R, bool Stream>
void tile(int64_t kc, const float* x, const T* const* w, int64_t step, float* c, int64_t ldc,
          bool fresh) {
  for (int sub = 0; sub < kSubs; sub += S) {
    Accumulators<P, S, R> acc;
    acc.load(c, ldc, sub, fresh);
    const T* row[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) row[p] = w[p];
    for (int64_t k = 0; k < kc; ++k) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p, row[p - 1] += step) {
        if (Stream && sub == 0) prefetch_row<P>(row[p], step);
        acc.step(x + k, row[p], p, sub);
      }
    }
    acc.store(c, ldc, sub);
  }
}

template <typename T>
using Tile = void (*)(int64_t kc, const float* x, const T* const* w, int64_t step, float* c,
                      int64_t ldc, bool fresh);

// Tiles by row count, 1 .. kMaxRows: several panels at once, or one.
template <typename T, bool Stream>
struct Tiles {
  Tile<T> wide[kMaxRows + 1]{}, narrow[kMaxRows + 1]{};

  constexpr Tiles() { fill(std::make_integer_sequence<int, kMaxRows>{}); }

 private:
  template <int... R>
  constexpr void fill(std::integer_sequence<int, R...>) {
    ((wide[R + 1] = tile<T, panels_at_once(R + 1), subs_at_once(R + 1), R + 1, Stream>), ...);
    ((narrow[R + 1] = tile<T, 1, subs_at_once(R + 1), R + 1, Stream>), ...);
  }
};

template <typename T, bool Stream>
inline constexpr Tiles<T, Stream> kTiles;

}  // namespace gemm
}  // namespace fd

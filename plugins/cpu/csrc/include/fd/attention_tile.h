// Register tiles of attention: products of query rows with keys and of probabilities with values.
//
// Order of every sum, on every path (this is what makes a row's result independent of its company):
// q.k adds sixteen lanes over the head dimension in ascending chunks, then the tree of sum16; p.v
// adds keys in ascending order. Tile shapes only choose which sums are in flight together.
#pragma once
#include "fd/attention_call.h"
#include "fd/gemm.h"

namespace fd {
namespace attn {

using gemm::kWidth;
using gemm::load_as;
using gemm::vw;  // one register

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTile = 16, kRows = 4;  // accumulators in flight, query rows in flight
#else
constexpr int kTile = 8, kRows = 2;
#endif

inline vw load_part(const float* p) { return load_as<vw>(p); }
inline vw load_part(const bf16* p) {
  typedef uint16_t vhw __attribute__((vector_size(2 * kWidth)));
  return reinterpret_cast<vw>(__builtin_convertvector(load_as<vhw>(p), gemm::vwu) << 16);
}
inline vw load_part(const f16* p) { return gemm::load_half(p); }
// Codes as they are: the scale of the row is the caller's business.
inline vw load_part(const q8* p) {
  typedef int8_t vbw __attribute__((vector_size(kWidth)));
  return __builtin_convertvector(load_as<vbw>(p), vw);
}
inline vw load_part(const e4m3* p) {
  typedef uint8_t vbw __attribute__((vector_size(kWidth)));
  const gemm::vwu code = __builtin_convertvector(load_as<vbw>(p), gemm::vwu);
  const vw size = reinterpret_cast<vw>((code & 0x7fu) << 20) * as_float(0x7b800000u);
  return reinterpret_cast<vw>(reinterpret_cast<gemm::vwu>(size) | (code & 0x80u) << 24);
}
inline void store_part(float* p, vw v) { std::memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
// {sum16(v[0]), ..., sum16(v[15])} in the order {v[0], v[4], v[8], v[12], v[1], v[5], ...}.
inline vf reduce_tile(const vf* v) {
  vf a[8], b[4], c[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    a[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19,
                                   20, 21, 22, 23) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26,
                                   27, 28, 29, 30, 31);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19,
                                   24, 25, 26, 27) +
           __builtin_shufflevector(a[2 * i], a[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22,
                                   23, 28, 29, 30, 31);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25,
                                   12, 13, 28, 29) +
           __builtin_shufflevector(b[2 * i], b[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                   27, 14, 15, 30, 31);
  return __builtin_shufflevector(c[0], c[1], 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28,
                                 30) +
         __builtin_shufflevector(c[0], c[1], 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29,
                                 31);
}

inline void store_sums(const vw (*acc)[kTile], float* out) {
  vf ordered[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) ordered[4 * (i % 4) + i / 4] = acc[0][i];
  store16(out, reduce_tile(ordered));
}
#else
typedef float v4 __attribute__((vector_size(16)));

// The first two levels of sum16's tree: lanes i, i + 4, i + 8 and i + 12 meet.
inline v4 quarter(const vw (*acc)[kTile], int i) {
#if defined(__AVX__)
  const vw s = acc[0][i] + acc[1][i];
  return __builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7);
#else
  return (acc[0][i] + acc[2][i]) + (acc[1][i] + acc[3][i]);
#endif
}

inline void store_sums(const vw (*acc)[kTile], float* out) {
#pragma GCC unroll 4
  for (int i = 0; i < kTile; i += 4) {
    const v4 a = quarter(acc, i), b = quarter(acc, i + 1), c = quarter(acc, i + 2),
             d = quarter(acc, i + 3);
    const v4 ab =
        __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
    const v4 cd =
        __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
    const v4 sum =
        __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
    std::memcpy(out + i, &sum, sizeof sum);
  }
}
#endif

// Lanes `part` of the products of R rows with kTile / R keys, summed over the head dimension.
// Fetch: the rows k[c + ahead] come into the cache meanwhile, a line at a time: more at once than
// the processor can have under way would stall it.
template <int R, bool Fetch, typename T>
inline void multiply(const float* q, int64_t q_stride, const T* const* k, int64_t dim,
                     int64_t ahead, int part, vw* out) {
  constexpr int C = kTile / R;
  vw acc[kTile] = {};
  for (int64_t d = part * kWidth; d < dim; d += kLanes) {
    vw query[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) query[r] = load_part(q + r * q_stride + d);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      if (Fetch) __builtin_prefetch(k[c + ahead] + d);
      const vw key = load_part(k[c] + d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r * C + c] += query[r] * key;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) out[i] = acc[i];
}

// s[r * s_stride + c] = q[r] . k[c] for R rows and kTile / R keys; dim is a multiple of 16.
template <int R, bool Fetch, typename T>
inline void qk_tile(const float* q, int64_t q_stride, const T* const* k, int64_t dim, int64_t ahead,
                    float* s, int64_t s_stride) {
  constexpr int C = kTile / R, kParts = kLanes / kWidth;
  vw acc[kParts][kTile];
#pragma GCC unroll 4
  for (int part = 0; part < kParts; ++part) {
    if (part == 0)
      multiply<R, Fetch>(q, q_stride, k, dim, ahead, part, acc[part]);
    else
      multiply<R, false>(q, q_stride, k, dim, 0, part, acc[part]);
  }
  float sums[kTile];
  store_sums(acc, sums);
  for (int r = 0; r < R; ++r) std::memcpy(s + r * s_stride, sums + r * C, C * sizeof(float));
}

// The lines of one row, soon to be read.
template <typename T>
inline void prefetch_row(const T* row, int64_t dim) {
  for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(T)))
    __builtin_prefetch(row + d);
}

// Sixteen keys for R rows; `ahead` 0: fetch nothing. Not inlined, as pv_rows: the loops around
// leave these too few registers for addresses.
template <int R, typename T>
__attribute__((noinline)) void qk_block(const float* q, int64_t q_stride, const T* const* k,
                                        int64_t dim, int64_t ahead, float* s, int64_t s_stride) {
  constexpr int C = kTile / R;
  for (int c = 0; c < kLanes; c += C) {
    if (ahead > 0)
      qk_tile<R, true>(q, q_stride, k + c, dim, ahead, s + c, s_stride);
    else
      qk_tile<R, false>(q, q_stride, k + c, dim, 0, s + c, s_stride);
  }
}

// acc[r * acc_stride + 0 .. N vectors) += sum over keys [begin, end) of p[r * p_stride + key] *
// v[key] from column d on, while the same columns of v[key + ahead] are fetched into the cache.
template <int R, int N, typename T>
inline void pv_tile(const float* p, int64_t p_stride, const T* const* v, int64_t d, int64_t begin,
                    int64_t end, int64_t ahead, float* acc, int64_t acc_stride) {
  vw sum[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = load_part(acc + r * acc_stride + kWidth * n);
  for (int64_t key = begin; key < end; ++key) {
    if (ahead > 0) prefetch_row(v[key + ahead] + d, N * kWidth);
    float weight[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) weight[r] = p[r * p_stride + key];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const vw value = load_part(v[key] + d + kWidth * n);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r][n] += value * weight[r];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store_part(acc + r * acc_stride + kWidth * n, sum[r][n]);
}

// All `dim` columns (a multiple of 16) of R rows.
template <int R, typename T>
__attribute__((noinline)) void pv_rows(const float* p, int64_t p_stride, const T* const* v,
                                       int64_t dim, int64_t begin, int64_t end, int64_t ahead,
                                       float* acc, int64_t acc_stride) {
  constexpr int N = kTile / R > 8 ? 8 : kTile / R;
  int64_t d = 0;
  for (; d + N * kWidth <= dim; d += N * kWidth)
    pv_tile<R, N>(p, p_stride, v, d, begin, end, ahead, acc + d, acc_stride);
  for (; d < dim; d += kWidth)
    pv_tile<R, 1>(p, p_stride, v, d, begin, end, ahead, acc + d, acc_stride);
}

}  // namespace attn
}  // namespace fd

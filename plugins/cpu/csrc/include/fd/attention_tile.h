// Register tiles of attention: products of query rows with keys and of probabilities with values.
//
// Order of every sum, on every path (this is what makes a row's result independent of its company):
// q.k adds sixteen lanes over the head dimension in ascending chunks, then the tree of sum16; p.v adds
// keys in ascending order. Tile shapes only choose which sums are in flight together.
#pragma once
#include "fd/types.h"

namespace fd {
namespace attn {

#if defined(__AVX512F__)
constexpr int kTile = 16, kRows = 4;  // accumulators in flight, query rows in flight
#else
constexpr int kTile = 4, kRows = 2;
#endif

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

inline void store_sums(const vf* acc, float* out) {
  vf ordered[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) ordered[4 * (i % 4) + i / 4] = acc[i];
  store16(out, reduce_tile(ordered));
}
#else
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));

inline v4 quarter(vf v) {
  const v8 s = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7);
}

// {sum16(acc[0]), ..., sum16(acc[3])}
inline void store_sums(const vf* acc, float* out) {
  const v4 a = quarter(acc[0]), b = quarter(acc[1]), c = quarter(acc[2]), d = quarter(acc[3]);
  const v4 ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const v4 cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  const v4 s = __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
  std::memcpy(out, &s, sizeof s);
}
#endif

// s[r * s_stride + c] = q[r] . k[c] for R rows and kTile / R keys; dim is a multiple of 16.
template <int R, typename T>
inline void qk_tile(const float* q, int64_t q_stride, const T* const* k, int64_t dim, float* s,
                    int64_t s_stride) {
  constexpr int C = kTile / R;
  vf acc[R * C] = {};
  for (int64_t d = 0; d < dim; d += kLanes) {
    vf query[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) query[r] = load16(q + r * q_stride + d);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const vf key = load16(k[c] + d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r * C + c] += query[r] * key;
    }
  }
  float sums[kTile];
  store_sums(acc, sums);
  for (int r = 0; r < R; ++r) std::memcpy(s + r * s_stride, sums + r * C, C * sizeof(float));
}

// acc[r * acc_stride + 0 .. 16 N) += sum over keys [begin, end) of p[r * p_stride + key] * v[key].
template <int R, int N, typename T>
inline void pv_tile(const float* p, int64_t p_stride, const T* const* v, int64_t d, int64_t begin,
                    int64_t end, float* acc, int64_t acc_stride) {
  vf sum[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = load16(acc + r * acc_stride + kLanes * n);
  for (int64_t key = begin; key < end; ++key) {
    vf value[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) value[n] = load16(v[key] + d + kLanes * n);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const float weight = p[r * p_stride + key];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r][n] += value[n] * weight;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store16(acc + r * acc_stride + kLanes * n, sum[r][n]);
}

// All `dim` columns (a multiple of 16) of R rows.
template <int R, typename T>
inline void pv_rows(const float* p, int64_t p_stride, const T* const* v, int64_t dim, int64_t begin,
                    int64_t end, float* acc, int64_t acc_stride) {
  constexpr int N = kTile / R > 8 ? 8 : kTile / R;
  int64_t d = 0;
  for (; d + N * kLanes <= dim; d += N * kLanes)
    pv_tile<R, N>(p, p_stride, v, d, begin, end, acc + d, acc_stride);
  for (; d < dim; d += kLanes)
    pv_tile<R, 1>(p, p_stride, v, d, begin, end, acc + d, acc_stride);
}

}  // namespace attn
}  // namespace fd

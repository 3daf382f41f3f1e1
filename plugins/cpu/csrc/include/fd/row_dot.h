// Sums over k of products of two row-major matrices of codes, a [M, K] and b [N, K]: lanes run
// along k. One chain per output, so a row's result depends on no other row.
#pragma once
#include "fd/fp8.h"
#include "fd/int_dot.h"

namespace fd {
namespace gemm {

// Rows r < R of a times rows c < C of b.
template <int R, int C>
struct Int8RowDot {
  // `b_sums` [C]: the codes of each row of b added up (read with VNNI only).
  static void run(const int8_t* a, const int8_t* b, int64_t depth, const int32_t* b_sums,
                  int32_t* sums) {
#if defined(__AVX512VNNI__)
    __m512i acc[R][C];
    for (auto& row : acc)
      for (auto& one : row) one = _mm512_setzero_si512();
    for (int64_t k = 0; k < depth; k += 64) {
      const int64_t left = depth - k;
      const __mmask64 some = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
      __m512i y[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) y[c] = _mm512_maskz_loadu_epi8(some, b + c * depth + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512i x = _mm512_maskz_loadu_epi8(some, a + r * depth + k);
        const __m512i lifted = _mm512_xor_si512(x, _mm512_set1_epi8(-128));
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], lifted, y[c]);
      }
    }
    for (int i = 0; i < R * C; ++i) {
      const vi lanes = reinterpret_cast<vi>(acc[i / C][i % C]);
      uint32_t sum = 0u - 128u * static_cast<uint32_t>(b_sums[i % C]);
      for (int l = 0; l < kLanes; ++l) sum += static_cast<uint32_t>(lanes[l]);
      sums[i] = static_cast<int32_t>(sum);
    }
#else
    (void)b_sums;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) {
        int32_t sum = 0;
        for (int64_t k = 0; k < depth; ++k) sum += a[r * depth + k] * b[c * depth + k];
        sums[r * C + c] = sum;
      }
#endif
  }
};

// Float rows a [R][stride] times codes of b, in blocks of k that have a scale for each row of a;
// `scales` null: one throughout.
template <int R, int C>
struct Fp8RowDot {
  static void run(const float* a, int64_t stride, const uint8_t* b, int64_t depth, int64_t block,
                  const float* scales, int64_t scale_step, const float* b_scales, int64_t b_step,
                  float* sums) {
    vf total[R][C] = {};
    for (int64_t k0 = 0, g = 0; k0 < depth; k0 += block, ++g) {
      vf acc[R][C] = {};
      for (int64_t k = k0; k < std::min(k0 + block, depth); k += kLanes) {
        vf y[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) y[c] = e4m3_floats(b + c * depth + k);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const vf x = load16(a + r * stride + k);
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) acc[r][c] += x * y[c];
        }
      }
      for (int r = 0; r < R; ++r) {
        const float scale =
            scales == nullptr ? 1.0f : scales[r * scale_step + g] * b_scales[g * b_step];
        for (int c = 0; c < C; ++c) total[r][c] += acc[r][c] * scale;
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r * C + c] = sum16(total[r][c]);
  }
};

}  // namespace gemm
}  // namespace fd

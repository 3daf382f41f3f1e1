// Products of float32 rows with quantised panels (quant_panels.h), widened to float32 in registers:
// the chain of gemm.h, acc = fma(x[k], w[k], acc), over w = code (int8; the scale multiplies the
// finished sum) or w = code * scale of its group (int4).
#pragma once
#include "fd/dense_stream.h"
#include "fd/quant_panels.h"

namespace fd {
namespace gemm {

typedef int32_t vwi __attribute__((vector_size(4 * kWidth)));

inline vw as_float_lanes(vwi v) { return __builtin_convertvector(v, vw); }

// A panel of int8: `quad` is [32][4] bytes.
struct Int8Panel {
  static constexpr int64_t kQuadBytes = kInt8Quad, kHeader = 0;
  vwi lo, hi;
  struct Scales {
    void load(const uint8_t*, int) {}
  };

  Int8Panel(const uint8_t* quad, int sub)
      : lo(load_as<vwi>(quad + sub * kWidth * kQuad)),
        hi(load_as<vwi>(quad + (16 + sub * kWidth) * kQuad)) {}
  Pair widen(int i, const Scales&) const {
    return {as_float_lanes((lo << (24 - 8 * i)) >> 24), as_float_lanes((hi << (24 - 8 * i)) >> 24)};
  }
};

// A panel of int4: `quad` is [16][4] bytes of two nibbles.
struct Int4Panel {
  static constexpr int64_t kQuadBytes = kInt4Quad, kHeader = kInt4Scales;
  vwi both;
  struct Scales {
    Pair of;
    void load(const uint8_t* group, int sub) {
      of = load_pair(reinterpret_cast<const bf16*>(group), sub);
    }
  };

  Int4Panel(const uint8_t* quad, int sub) : both(load_as<vwi>(quad + sub * kWidth * kQuad)) {}
  Pair widen(int i, const Scales& scales) const {
    return {nibble(8 * i) * scales.of.lo, nibble(8 * i + 4) * scales.of.hi};
  }

 protected:
  vw nibble(int shift) const {
#if defined(__AVX512F__)
    const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const vwi index = both >> shift;  // the low four bits select
    return reinterpret_cast<vw>(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), values));
#else
    return as_float_lanes((both << (28 - shift)) >> 28);
#endif
  }
};

// The same with zero points. Nothing is rounded: a scale has 8 bits, a code less its zero point 9.
struct Int4ZeroPanel : Int4Panel {
  static constexpr int64_t kHeader = kInt4Scales + kInt4Zeros;
  struct Scales {
    Pair of, shift;
    void load(const uint8_t* group, int sub) {
      of = load_pair(reinterpret_cast<const bf16*>(group), sub);
      const uint8_t* zeros = group + kInt4Scales + sub * kWidth;
      shift = {zero_points(zeros) * of.lo, zero_points(zeros + 16) * of.hi};
    }

   private:
    static vw zero_points(const uint8_t* from) {
      typedef int8_t Bytes __attribute__((vector_size(kWidth)));
      return __builtin_convertvector(load_as<Bytes>(from), vw);
    }
  };

  using Int4Panel::Int4Panel;
  Pair widen(int i, const Scales& scales) const {
    return {nibble(8 * i) * scales.of.lo - scales.shift.lo,
            nibble(8 * i + 4) * scales.of.hi - scales.shift.hi};
  }
};

// The weights of P panels at once and their accumulators. `Stream`: they come from memory.
template <typename W, int P, int S, int R, bool Stream>
struct QuantTile {
  Accumulators<P, S, R> acc;
  typename W::Scales scales[P][S];
  const uint8_t* at[P];

  // `depth` steps of k of one group of every panel.
  void group(const float* x, int64_t depth, const uint8_t* const* w, int64_t offset, int sub) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      for (int s = 0; s < S; ++s) scales[p][s].load(w[p] + offset, sub + s);
      at[p] = w[p] + offset + W::kHeader;
    }
    for (; depth >= kQuad; depth -= kQuad, x += kQuad) quad<kQuad>(x, sub);
    if (depth == 1) quad<1>(x, sub);
    if (depth == 2) quad<2>(x, sub);
    if (depth == 3) quad<3>(x, sub);
  }

 private:
  template <int Steps>
  void quad(const float* x, int sub) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      if (Stream && sub == 0) prefetch(at[p]);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) {
        const W w(at[p], sub + s);
#pragma GCC unroll 4
        for (int i = 0; i < Steps; ++i) step(x + i, w.widen(i, scales[p][s]), p, s);
      }
      at[p] += W::kQuadBytes;
    }
  }
  static void prefetch(const uint8_t* from) {
    __builtin_prefetch(from + kAhead / P);
    if (W::kQuadBytes > 64) __builtin_prefetch(from + kAhead / P + 64);
  }
  void step(const float* x, Pair w, int p, int s) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      acc.a[p][s][r][0] += w.lo * x[r * kStrideX];
      acc.a[p][s][r][1] += w.hi * x[r * kStrideX];
    }
  }
};

// c[R][P * 32] (+)= x[R][kc] * w[p]; `w` points at the groups of `group` steps that begin here.
template <typename W, int P, int S, int R>
void quant_tile(int64_t kc, int64_t group, const float* x, const uint8_t* const* w, float* c,
                int64_t ldc, bool fresh) {
  const int64_t bytes = W::kHeader + group / kQuad * W::kQuadBytes;
  for (int sub = 0; sub < kSubs; sub += S) {
    QuantTile<W, P, S, R, true> tile;
    tile.acc.load(c, ldc, sub, fresh);
    for (int64_t k = 0; k < kc; k += group)
      tile.group(x + k, std::min(group, kc - k), w, k / group * bytes, sub);
    tile.acc.store(c, ldc, sub);
  }
}

using QuantTileFn = void (*)(int64_t kc, int64_t group, const float* x, const uint8_t* const* w,
                             float* c, int64_t ldc, bool fresh);

// Tiles by row count, 1 .. kMaxRows: several panels at once, or one.
template <typename W>
struct QuantTiles {
  QuantTileFn wide[kMaxRows + 1]{}, narrow[kMaxRows + 1]{};

  constexpr QuantTiles() { fill(std::make_integer_sequence<int, kMaxRows>{}); }

 private:
  template <int... R>
  constexpr void fill(std::integer_sequence<int, R...>) {
    ((wide[R + 1] = quant_tile<W, panels_at_once(R + 1), subs_at_once(R + 1), R + 1>), ...);
    ((narrow[R + 1] = quant_tile<W, 1, subs_at_once(R + 1), R + 1>), ...);
  }
};

template <typename W>
inline constexpr QuantTiles<W> kQuantTiles;

// `group` steps of k share a scale; int8 takes a block of K for one group.
template <typename W>
struct QuantPanels {
  const uint8_t* w;
  int64_t panel_bytes, group;

  const uint8_t* at(int64_t panel, int64_t k0) const {
    const int64_t bytes = W::kHeader + group / kQuad * W::kQuadBytes;
    return w + panel * panel_bytes + k0 / group * bytes;
  }
};

// One pass over the P panels `ids`.
template <typename W>
void quant_stream_group(const Job& job, const QuantPanels<W>& panels, const int64_t* ids, int P,
                        const QuantTileFn* tiles) {
  alignas(64) float c[std::max<int64_t>(kRowsAtOnce, kStreams * kMaxRows) * kPanel];
  const int64_t ldc = P * kPanel, blocks = row_blocks(job.rows);
  const uint8_t* at[kStreams] = {};
  for (int64_t k0 = 0; k0 == 0 || k0 < job.depth; k0 += kBlockK) {
    const int64_t kc = std::min<int64_t>(kBlockK, job.depth - k0);
    for (int p = 0; p < P; ++p) at[p] = panels.at(ids[p], k0);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t r0 = job.rows * b / blocks, r1 = job.rows * (b + 1) / blocks;
      const float* x = job.x.at(k0, job.first + r0);
      tiles[r1 - r0](kc, panels.group, x, at, c + r0 * ldc, ldc, k0 == 0);
    }
  }
  for (int p = 0; p < P; ++p) job.sink.write(job.first, job.rows, ids[p], c + p * kPanel, ldc);
}

// Panels [begin, end), P at a time: as P sequential streams, each a contiguous part of the range.
template <typename Run>
void for_streams(int64_t begin, int64_t end, int P, Run&& run) {
  const int64_t length = (end - begin) / P;
  for (int64_t i = 0; i < length; ++i) {
    int64_t ids[kStreams];
    for (int p = 0; p < P; ++p) ids[p] = begin + p * length + i;
    run(ids, P);
  }
  for (int64_t id = begin + P * length; id < end; ++id) run(&id, 1);
}

// All rows of the job times panels [begin, end).
template <typename W>
void quant_range(const Job& job, const QuantPanels<W>& panels, int64_t begin, int64_t end) {
  const int wide = job.rows <= kMaxRows ? panels_at_once(static_cast<int>(job.rows)) : 1;
  for_streams(begin, end, wide, [&](const int64_t* ids, int P) {
    const auto& tiles = kQuantTiles<W>;
    quant_stream_group(job, panels, ids, P, P == 1 ? tiles.narrow : tiles.wide);
  });
}

template <typename W>
void run_quant_stream(const Job& job, const QuantPanels<W>& panels) {
  const int64_t count = panels_of(job.sink.columns), passes = row_passes(job.rows);
  const int64_t ranges = stream_ranges(job, count);
  parallel_cells(ranges * passes, [&](int64_t cell, int64_t) {
    const int64_t range = cell / passes;  // passes over the same weights are neighbours
    quant_range(job.pass(cell % passes, passes), panels, count * range / ranges,
                count * (range + 1) / ranges);
  });
}

}  // namespace gemm
}  // namespace fd

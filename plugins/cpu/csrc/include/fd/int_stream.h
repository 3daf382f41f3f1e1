// Products of int8 rows with quantised panels: int32 sums within a group, float32 across groups.
// The sums are exact and the groups are added in order, so nothing depends on the batch.
#pragma once
#include "fd/quant_rows.h"
#include "fd/quant_stream.h"

namespace fd {
namespace gemm {

// Bytes of activations that share one pass over the weights.
constexpr int64_t kCodesAtOnce = 384 << 10;

// How a tile of R rows uses the registers: P panels at once, U units of each.
constexpr int dot_units(int rows) {
  int n = 1;
  while (n < 4 * kDotUnits && 2 * n * rows <= kDotAccumulators) n *= 2;
  return n;
}
constexpr int dot_units_at_once(int rows) {
  return dot_units(rows) < kDotUnits ? dot_units(rows) : kDotUnits;
}
constexpr int dot_panels_at_once(int rows) { return dot_units(rows) / dot_units_at_once(rows); }

struct IntJob {
  int64_t first, rows;
  QuantRows x;
  int64_t quads, all_quads;  // of a group (the last one may have fewer) and of a panel
  const uint8_t* w;
  int64_t panel_bytes, group_bytes;
  Sink sink;

  // Pass i of n: its share of the rows.
  IntJob pass(int64_t i, int64_t n) const {
    IntJob part = *this;
    part.first = first + rows * i / n;
    part.rows = first + rows * (i + 1) / n - part.first;
    return part;
  }
};

// Scales of the weights of one group and panel; int8 panels have none here.
inline void load_scales(const Int8Dot&, const uint8_t*, float*) {}
inline void load_scales(const Int4Dot&, const uint8_t* header, float* to) {
  const vu both = load_as<vu>(header);
  store16(to, reinterpret_cast<vf>(both << 16));
  store16(to + 16, reinterpret_cast<vf>(both & 0xffff0000u));
}

// What the columns' sums begin with, times the sum of a row's codes.
template <typename W>
struct Starts {
  void load(const uint8_t*) {}
  DotSum of(int32_t sum, int) const { return dot_start<W::kLift>(sum); }
};
template <>
struct Starts<Int4ZeroDot> {
  alignas(64) int32_t by[kPanel];
  void load(const uint8_t* header) {
    const auto* zeros = reinterpret_cast<const int8_t*>(header + kInt4Scales);
    for (int j = 0; j < kPanel; ++j) by[j] = -(Int4ZeroDot::kLift + zeros[j]);
  }
  DotSum of(int32_t sum, int column) const { return dot_start(sum, by + column); }
};

// c[R][P * 32] += codes of x * codes of group g of P panels, scaled.
template <typename W, int P, int U, int R>
void dot_tile(const IntJob& job, int64_t row, int64_t g, const uint8_t* const* w, float* c) {
  const Code* x = job.x.at(row, g);
  const int64_t quads = std::min(job.quads, job.all_quads - g * job.quads);
  const int64_t begin = g * job.group_bytes, first = row * job.x.groups + g;
  alignas(64) float scales[P][kPanel];
  Starts<W> starts[P];
  for (int p = 0; p < P; ++p)
    load_scales(W{}, w[p] + begin, scales[p]), starts[p].load(w[p] + begin);
  for (int sub = 0; sub < kDotUnits; sub += U) {
    DotSum acc[P][U][R];
#pragma GCC unroll 32
    for (int i = 0; i < P * U * R; ++i) {
      const int32_t sum = job.x.sums[first + i % R * job.x.groups];
      const int u = i / R % U, p = i / (U * R);
      acc[p][u][i % R] = starts[p].of(sum, (sub + u) * kDotColumns);
    }
    int64_t at = begin + W::kHeader;
    for (int64_t q = 0; q < quads; ++q, at += W::kQuadBytes)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        if (sub == 0) __builtin_prefetch(w[p] + at + kAhead / P);
        if (sub == 0 && W::kQuadBytes > 64) __builtin_prefetch(w[p] + at + kAhead / P + 64);
#pragma GCC unroll 32
        for (int i = 0; i < U * R; ++i)
          acc[p][i % U][i / U] = dot(acc[p][i % U][i / U], W::load(w[p] + at, sub + i % U),
                                     dot_quad(x + i / U * job.x.stride + q * kQuad));
      }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) {
          const int column = (sub + u) * kDotColumns;
          dot_add<(W::kHeader > 0)>(c + (r * P + p) * kPanel + column, acc[p][u][r],
                                    job.x.scales[first + r * job.x.groups], scales[p] + column);
        }
  }
}

// R rows from `row` on and the P panels `ids`: to the output.
template <typename W, int P, int R>
void dot_block(const IntJob& job, int64_t row, const int64_t* ids) {
  alignas(64) float c[R * P * kPanel] = {};
  const uint8_t* w[P];
  for (int p = 0; p < P; ++p) w[p] = job.w + ids[p] * job.panel_bytes;
  for (int64_t g = 0; g < job.x.groups; ++g)
    dot_tile<W, P, dot_units_at_once(R), R>(job, row, g, w, c);
  for (int p = 0; p < P; ++p) job.sink.write(row, R, ids[p], c + p * kPanel, P * kPanel);
}

using DotBlock = void (*)(const IntJob& job, int64_t row, const int64_t* ids);

// Blocks by row count, 1 .. kDotRows: several panels at once, or one.
template <typename W>
struct DotBlocks {
  DotBlock wide[kDotRows + 1]{}, narrow[kDotRows + 1]{};

  constexpr DotBlocks() { fill(std::make_integer_sequence<int, kDotRows>{}); }

 private:
  template <int... R>
  constexpr void fill(std::integer_sequence<int, R...>) {
    ((wide[R + 1] = dot_block<W, dot_panels_at_once(R + 1), R + 1>), ...);
    ((narrow[R + 1] = dot_block<W, 1, R + 1>), ...);
  }
};

template <typename W>
inline constexpr DotBlocks<W> kDotBlocks;

#if defined(__AVX512VNNI__)
// Many rows: all groups of a panel with the integer and the float sums in registers. Stores leave a
// core in order, so float sums kept in memory would wait behind results on their way to memory.
// The sums are those of dot_block.
constexpr int kTallRows = 6;

// sum[r][u] += R rows from `row` on times group g, which begins at `w`, scaled.
template <typename W, int R>
inline __attribute__((always_inline)) void tall_group(const IntJob& job, int64_t row, int64_t g,
                                                      const uint8_t* w, vf (&sum)[R][kDotUnits]) {
  const int64_t stride = job.x.stride, groups = job.x.groups, first = row * groups + g;
  alignas(64) float scales[kPanel];
  load_scales(W{}, w, scales);
  Starts<W> starts;
  starts.load(w);
  DotSum acc[R][kDotUnits];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int u = 0; u < kDotUnits; ++u)
      acc[r][u] = starts.of(job.x.sums[first + r * groups], u * kDotColumns);
  const Code* x = job.x.at(row, g);
  const Code* end = x + std::min(job.quads, job.all_quads - g * job.quads) * kQuad;
  w += W::kHeader;
#pragma GCC unroll 2
  for (; x != end; x += kQuad, w += W::kQuadBytes)
#pragma GCC unroll 16
    for (int i = 0; i < R * kDotUnits; ++i) {
      DotSum& one = acc[i / kDotUnits][i % kDotUnits];
      one = dot(one, W::load(w, i % kDotUnits), dot_quad(x + i / kDotUnits * stride));
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int u = 0; u < kDotUnits; ++u) {
      const vf scale = load16(scales + u * kDotColumns);
      const vf wide = W::kHeader > 0 ? dot_float(acc[r][u], scale) : dot_float(acc[r][u]);
      sum[r][u] += wide * job.x.scales[first + r * groups];
    }
}

// R rows from `row` on and panel `id`: to the output.
template <typename W, int R>
void dot_tall(const IntJob& job, int64_t row, int64_t id) {
  const uint8_t* w = job.w + id * job.panel_bytes;
  vf sum[R][kDotUnits];
#pragma GCC unroll 16
  for (int i = 0; i < R * kDotUnits; ++i) sum[i / kDotUnits][i % kDotUnits] = vf{};
  for (int64_t g = 0; g < job.x.groups; ++g, w += job.group_bytes)
    tall_group<W, R>(job, row, g, w, sum);
  alignas(64) float c[R * kPanel];
#pragma GCC unroll 16
  for (int i = 0; i < R * kDotUnits; ++i)
    store16(c + i * kDotColumns, sum[i / kDotUnits][i % kDotUnits]);
  job.sink.write(row, R, id, c, kPanel);
}

// All rows of the job, at least 4 * kTallRows. Each block also fetches its share of the next panel.
template <typename W>
void tall_rows(const IntJob& job, int64_t id) {
  const int64_t blocks = (job.rows + kTallRows - 1) / kTallRows;
  const uint8_t* next = job.w + (id + 1) * job.panel_bytes;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t r0 = job.rows * b / blocks, r1 = job.rows * (b + 1) / blocks;
    for (int64_t i = job.panel_bytes * b / blocks; i < job.panel_bytes * (b + 1) / blocks; i += 64)
      __builtin_prefetch(next + i, 0, 2);
    constexpr auto full = dot_tall<W, kTallRows>, less = dot_tall<W, kTallRows - 1>;
    (r1 - r0 == kTallRows ? full : less)(job, job.first + r0, id);
  }
}
#endif

template <typename W>
void dot_rows(const IntJob& job, const int64_t* ids, int P) {
#if defined(__AVX512VNNI__)
  if (job.rows >= 4 * kTallRows) return tall_rows<W>(job, ids[0]);
#endif
  const int64_t blocks = (job.rows + kDotRows - 1) / kDotRows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t r0 = job.rows * b / blocks, r1 = job.rows * (b + 1) / blocks;
    (P == 1 ? kDotBlocks<W>.narrow : kDotBlocks<W>.wide)[r1 - r0](job, job.first + r0, ids);
  }
}

// Ranges of panels by the work in them: a quarter of what the same sums cost in floats.
inline int64_t dot_ranges(const IntJob& job, int64_t panels) {
  Job like{0, job.rows / 4, job.x.groups * job.x.group, {}, job.sink};
  return stream_ranges(like, panels);
}

// Times that the weights are read for the job's rows, so that a pass's activations stay in cache.
inline int64_t dot_passes(const IntJob& job) {
  const int64_t bytes = job.x.stride * static_cast<int64_t>(sizeof(Code));
  const int64_t at_once = std::max<int64_t>(8 * kDotRows, kCodesAtOnce / bytes);
  return (job.rows + at_once - 1) / at_once;
}

// All rows of the job times panels [begin, end).
template <typename W>
void dot_range(const IntJob& job, int64_t begin, int64_t end) {
  const int wide = job.rows <= kDotRows ? dot_panels_at_once(static_cast<int>(job.rows)) : 1;
  for_streams(begin, end, wide, [&](const int64_t* ids, int P) { dot_rows<W>(job, ids, P); });
}

template <typename W>
void run_dots(const IntJob& job) {
  const int64_t count = panels_of(job.sink.columns);
  const int64_t passes = dot_passes(job), ranges = dot_ranges(job, count);
  parallel_cells(ranges * passes, [&](int64_t cell, int64_t) {
    const int64_t range = cell / passes;
    dot_range<W>(job.pass(cell % passes, passes), count * range / ranges,
                 count * (range + 1) / ranges);
  });
}

// All rows of x, some at a time, in groups of `group` steps of k; a panel of w has `all_quads`.
template <typename W>
void run_dynamic(const Matrix& x, Sink sink, const uint8_t* w, int64_t group, int64_t all_quads) {
  const int64_t chunks = (x.rows + kRowsPacked - 1) / kRowsPacked;
  const int64_t quads = group / kQuad, group_bytes = W::kHeader + quads * W::kQuadBytes;
  char* const out = sink.out;
  with_kind(x.kind, [&](auto tag) {
    const auto* from = reinterpret_cast<const decltype(tag)*>(x.data);
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t r0 = x.rows * i / chunks, r1 = x.rows * (i + 1) / chunks;
      with_kind(sink.kind, [&](auto o) { sink.out = out + r0 * sink.stride * sizeof(o); });
      const QuantRows rows = quantise_rows(from + r0 * x.stride, x.stride, r1 - r0, x.depth, group);
      const int64_t panel_bytes = rows.groups * W::kHeader + all_quads * W::kQuadBytes;
      run_dots<W>({0, r1 - r0, rows, quads, all_quads, w, panel_bytes, group_bytes, sink});
    }
  });
}

}  // namespace gemm
}  // namespace fd

// Dense products out[M][N] = x[M][K] * w + bias over the tiles of gemm.h: packing x, blocking, threads,
// the last rounding. Weights come from a source: `fill(panel, k0, kc, dst)` widens one block of a panel
// to float32 [kc][32], zero beyond the last column.
#pragma once
#include <algorithm>

#include "fd/check.h"
#include "fd/gemm.h"
#include "fd/parallel.h"
#include "fd/scratch.h"

namespace fd {
namespace gemm {

constexpr int64_t kRowsAtOnce = 512;             // rows of x packed at a time: bounds the scratch
constexpr int64_t kStreamRows = 3 * kMaxRows;    // up to here weights are widened in registers
constexpr int64_t kGroup = 4;                    // panels widened together; they stay in L2
constexpr int64_t kMinWork = 1 << 16;            // multiply-adds worth a thread

enum class Kind { kFloat, kBf16, kF16 };

inline Kind kind_of(const Tensor& t) {
  return is<float>(t) ? Kind::kFloat : is<bf16>(t) ? Kind::kBf16 : Kind::kF16;
}

template <typename F>
void with_kind(Kind kind, F&& f) {
  if (kind == Kind::kFloat) return f(float{});
  if (kind == Kind::kBf16) return f(bf16{});
  f(f16{});
}

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
inline int64_t row_blocks(int64_t rows) { return (rows + kMaxRows - 1) / kMaxRows; }

// Where finished sums go: bias added in float32, one rounding to the output's type.
struct Sink {
  char* out;
  int64_t stride;  // elements
  Kind kind;
  int64_t columns;
  const char* bias;  // null: none
  Kind bias_kind;

  void write(int64_t row, int64_t rows, int64_t panel, const float* c, int64_t ldc) const {
    vf add[2] = {};
    const int64_t first = panel * kPanel;
    const int n = static_cast<int>(std::min<int64_t>(kPanel, columns - first));
    if (bias != nullptr)
      with_kind(bias_kind, [&](auto tag) {
        const auto* b = reinterpret_cast<const decltype(tag)*>(bias) + first;
        add[0] = load_tail(b, std::min(n, 16));
        if (n > 16) add[1] = load_tail(b + 16, n - 16);
      });
    with_kind(kind, [&](auto tag) {
      auto* o = reinterpret_cast<decltype(tag)*>(out) + row * stride + first;
      for (int64_t r = 0; r < rows; ++r) write_row(o + r * stride, c + r * ldc, add, n);
    });
  }

 private:
  template <typename T>
  static void write_row(T* out, const float* c, const vf* add, int n) {
    for (int half = 0; half < 2; ++half) {
      const int left = n - 16 * half;
      const vf sum = load16(c + 16 * half) + add[half];
      if (left >= 16)
        store16(out + 16 * half, sum);
      else if (left > 0)
        store_tail(out + 16 * half, sum, left);
    }
  }
};

// Rows of x in float32, cut along K: block b holds [rows][kStrideX] at base + b * block_stride.
struct Blocks {
  const float* base;
  int64_t block_stride;

  const float* at(int64_t k0, int64_t row) const {
    return base + k0 / kBlockK * block_stride + row * kStrideX;
  }
};

struct Job {
  int64_t rows, depth;
  Blocks x;
  Sink sink;
};

template <typename T>
void pack_row(const T* x, int64_t depth, float* to, int64_t block_stride) {
  for (int64_t k0 = 0; k0 < depth; k0 += kBlockK, to += block_stride) {
    const int64_t kc = std::min<int64_t>(kBlockK, depth - k0);
    int64_t k = 0;
    for (; k + kLanes <= kc; k += kLanes) store16(to + k, load16(x + k0 + k));
    for (; k < kc; ++k) to[k] = to_float(x[k0 + k]);
  }
}

// A single float32 row serves as it is: its blocks are already adjacent.
template <typename T>
Blocks pack_rows(const T* x, int64_t stride, int64_t rows, int64_t depth) {
  if constexpr (sizeof(T) == 4)
    if (rows == 1) return {x, kBlockK};
  const int64_t block_stride = rows * kStrideX;
  float* to = scratch<0>((depth + kBlockK - 1) / kBlockK * block_stride);
  parallel_for(rows, 1 + 32768 / (depth + 1), [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      pack_row(x + r * stride, depth, to + r * kStrideX, block_stride);
  });
  return {to, block_stride};
}

// ---- few rows: panels stream from memory through registers ----

// `w`: packed weights in their own type. `ids`: the P panels read side by side.
template <typename T>
void stream_group(const Job& job, const T* w, const int64_t* ids, int P, const Tile<T>* tiles) {
  alignas(64) float c[kStreamRows * 4 * kPanel];
  const int64_t ldc = P * kPanel, blocks = row_blocks(job.rows);
  const T* at[4] = {};
  for (int64_t k0 = 0; k0 == 0 || k0 < job.depth; k0 += kBlockK) {
    const int64_t kc = std::min<int64_t>(kBlockK, job.depth - k0);
    for (int p = 0; p < P; ++p) at[p] = w + (ids[p] * job.depth + k0) * kPanel;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t r0 = job.rows * b / blocks, r1 = job.rows * (b + 1) / blocks;
      tiles[r1 - r0](kc, job.x.at(k0, r0), at, c + r0 * ldc, ldc, k0 == 0);
    }
  }
  for (int p = 0; p < P; ++p) job.sink.write(0, job.rows, ids[p], c + p * kPanel, ldc);
}

// Panels [begin, end) as P sequential streams, each a contiguous part of the range.
template <typename T>
void stream(const Job& job, const T* w, int64_t begin, int64_t end) {
  const int64_t blocks = row_blocks(job.rows);
  const int tallest = static_cast<int>((job.rows + blocks - 1) / blocks);
  const int P = blocks == 1 ? panels_at_once(tallest) : 1;
  const int64_t length = (end - begin) / P;
  for (int64_t i = 0; i < length; ++i) {
    int64_t ids[4];
    for (int p = 0; p < P; ++p) ids[p] = begin + p * length + i;
    stream_group(job, w, ids, P, P == 1 ? kTiles<T, true>.narrow : kTiles<T, true>.wide);
  }
  for (int64_t id = begin + P * length; id < end; ++id)
    stream_group(job, w, &id, 1, kTiles<T, true>.narrow);
}

// ---- many rows: blocks of panels widened once ----

// Rows [r0, r1) of up to kGroup panels from `panel`. `b` [kGroup][kBlockK][32], `c` [rows][n * 32].
template <typename Source>
void block_group(const Job& job, const Source& source, int64_t panel, int64_t n, int64_t r0,
                 int64_t r1, float* b, float* c) {
  const int64_t ldc = n * kPanel, blocks = row_blocks(r1 - r0);
  for (int64_t k0 = 0; k0 == 0 || k0 < job.depth; k0 += kBlockK) {
    const int64_t kc = std::min<int64_t>(kBlockK, job.depth - k0);
    for (int64_t g = 0; g < n; ++g) source.fill(panel + g, k0, kc, b + g * kBlockK * kPanel);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t from = (r1 - r0) * i / blocks, to = (r1 - r0) * (i + 1) / blocks;
      for (int64_t g = 0; g < n; ++g) {
        const float* w = b + g * kBlockK * kPanel;
        kTiles<float, false>.narrow[to - from](kc, job.x.at(k0, r0 + from), &w,
                                               c + from * ldc + g * kPanel, ldc, k0 == 0);
      }
    }
  }
  for (int64_t g = 0; g < n; ++g) job.sink.write(r0, r1 - r0, panel + g, c + g * kPanel, ldc);
}

constexpr int64_t kGroupFloats = kGroup * kPanel * (kBlockK + kRowsAtOnce);

// `space`: kGroupFloats for this range alone.
template <typename Source>
void block(const Job& job, const Source& source, int64_t begin, int64_t end, int64_t r0, int64_t r1,
           float* space) {
  for (int64_t panel = begin; panel < end; panel += kGroup)
    block_group(job, source, panel, std::min(kGroup, end - panel), r0, r1, space,
                space + kGroup * kPanel * kBlockK);
}

// ---- threads ----

// The (rows, panels) grid: columns first, rows too where the panels do not go round.
struct Grid {
  int64_t across, down;

  Grid(int64_t rows, int64_t depth, int64_t panels) {
    const int64_t work = rows * depth * panels * kPanel;
    const int64_t parts = std::min<int64_t>(num_threads(), 1 + work / kMinWork);
    across = std::max<int64_t>(1, std::min(parts, panels));
    down = std::min(parts / across, row_blocks(rows));
  }
};

template <typename Source>
void run_blocks(const Job& job, const Source& source) {
  const int64_t panels = panels_of(job.sink.columns);
  const Grid grid(job.rows, job.depth, panels);
  float* space = scratch<1>(grid.across * grid.down * kGroupFloats);
  parallel_for(grid.across * grid.down, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % grid.across, row = i / grid.across;
      block(job, source, panels * column / grid.across, panels * (column + 1) / grid.across,
            job.rows * row / grid.down, job.rows * (row + 1) / grid.down, space + i * kGroupFloats);
    }
  });
}

template <typename T>
void run_stream(const Job& job, const T* w) {
  const int64_t panels = panels_of(job.sink.columns);
  const Grid grid(1, job.depth, panels);
  parallel_for(grid.across, 1, [&](int64_t begin, int64_t end) {
    stream(job, w, panels * begin / grid.across, panels * end / grid.across);
  });
}

// Calls run(job) for each chunk of at most kRowsAtOnce rows of x.
template <typename Run>
void for_row_chunks(Tensor x, Sink sink, Run&& run) {
  const int64_t rows = x.size(0), depth = x.size(1);
  const int64_t chunks = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  char* const out = sink.out;
  with_kind(kind_of(x), [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t r0 = rows * i / chunks, r1 = rows * (i + 1) / chunks;
      const Blocks blocks = pack_rows(x.data<T>() + r0 * x.stride(0), x.stride(0), r1 - r0, depth);
      with_kind(sink.kind, [&](auto o) { sink.out = out + r0 * sink.stride * sizeof(o); });
      run(Job{r1 - r0, depth, blocks, sink});
    }
  });
}

}  // namespace gemm
}  // namespace fd

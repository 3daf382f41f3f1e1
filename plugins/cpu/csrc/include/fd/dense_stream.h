// Packed weights read as sequential streams and widened in registers: from one row (bound by
// memory) to hundreds (bound by multiply-adds; the conversion hides beside them).
#pragma once
#include "fd/dense.h"

namespace fd {
namespace gemm {

constexpr int kStreams = 4;             // panels side by side at most
constexpr int64_t kCellCost = 1 << 23;  // of a cell worth claiming: some 50 microseconds
constexpr int64_t kCellsPerThread = 8;  // at most

// Row k of a panel is 32 columns at w + panel * panel_stride + k * step.
template <typename T>
struct Panels {
  const T* w;
  int64_t panel_stride, step;
  bool side_by_side;  // neighbouring panels share memory pages: read those together

  const T* at(int64_t panel, int64_t k) const { return w + panel * panel_stride + k * step; }
};

template <typename T>
Panels<T> packed_panels(const T* w, int64_t depth) {
  return {w, depth * kPanel, kPanel, false};
}

// [depth][columns], columns a multiple of 32.
template <typename T>
Panels<T> row_major_panels(const T* w, int64_t columns) {
  return {w, kPanel, columns, true};
}

// One pass over the P panels `ids`.
template <typename T>
void stream_group(const Job& job, const Panels<T>& panels, const int64_t* ids, int P,
                  const Tile<T>* tiles) {
  alignas(64) float c[std::max<int64_t>(kRowsAtOnce, kStreams * kMaxRows) * kPanel];
  const int64_t ldc = P * kPanel, blocks = row_blocks(job.rows);
  const T* at[kStreams] = {};
  for (int64_t k0 = 0; k0 == 0 || k0 < job.depth; k0 += kBlockK) {
    const int64_t kc = std::min<int64_t>(kBlockK, job.depth - k0);
    for (int p = 0; p < P; ++p) at[p] = panels.at(ids[p], k0);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t r0 = job.rows * b / blocks, r1 = job.rows * (b + 1) / blocks;
      const float* x = job.x.at(k0, job.first + r0);
      tiles[r1 - r0](kc, x, at, panels.step, c + r0 * ldc, ldc, k0 == 0);
    }
  }
  for (int p = 0; p < P; ++p) job.sink.write(job.first, job.rows, ids[p], c + p * kPanel, ldc);
}

// Panels [begin, end), P at a time: as P sequential streams, each a contiguous part of the range,
// or as neighbours.
template <typename T>
void stream(const Job& job, const Panels<T>& panels, int64_t begin, int64_t end) {
  const int P = job.rows <= kMaxRows ? panels_at_once(static_cast<int>(job.rows)) : 1;
  const int64_t length = (end - begin) / P;
  const int64_t stream_step = panels.side_by_side ? 1 : length, turn = panels.side_by_side ? P : 1;
  for (int64_t i = 0; i < length; ++i) {
    int64_t ids[kStreams];
    for (int p = 0; p < P; ++p) ids[p] = begin + p * stream_step + i * turn;
    stream_group(job, panels, ids, P, P == 1 ? kTiles<T, true>.narrow : kTiles<T, true>.wide);
  }
  for (int64_t id = begin + P * length; id < end; ++id)
    stream_group(job, panels, &id, 1, kTiles<T, true>.narrow);
}

// Ranges of panels: one a thread, more where they are long enough to be worth claiming.
inline int64_t stream_ranges(const Job& job, int64_t panels) {
  const int64_t threads = num_threads(), work = job.depth * panels * kPanel;
  const int64_t fewest = std::min(threads, 1 + work / kMinWork);
  const int64_t cost = work * (std::min(job.rows, kRowsAtOnce) + 8);
  return std::min(
      panels, std::clamp(cost / kCellCost, fewest, std::max(fewest, threads * kCellsPerThread)));
}

template <typename T>
void run_stream(const Job& job, const Panels<T>& panels) {
  const int64_t count = panels_of(job.sink.columns), passes = row_passes(job.rows);
  const int64_t ranges = stream_ranges(job, count);
  parallel_cells(ranges * passes, [&](int64_t cell, int64_t) {
    const int64_t range = cell / passes;  // passes over the same weights are neighbours
    stream(job.pass(cell % passes, passes), panels, count * range / ranges,
           count * (range + 1) / ranges);
  });
}

}  // namespace gemm
}  // namespace fd

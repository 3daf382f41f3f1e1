// Weights in any layout, widened block by block to float32 panels that stay in L2. A source brings
// `fill(panel, k0, kc, to)`: one block of a panel as [kc][32], zero beyond the last column.
#pragma once
#include "fd/dense.h"

namespace fd {
namespace gemm {

constexpr int64_t kGroup = 4;  // panels widened together
constexpr int64_t kGroupFloats = kGroup * kPanel * (kBlockK + kRowsAtOnce);

// One pass over `n` <= kGroup panels. `b` [n][kBlockK][32] and `c` [rows][n * 32] are working
// memory.
template <typename Source>
void block_group(const Job& job, const Source& source, int64_t panel, int64_t n, float* b,
                 float* c) {
  const int64_t ldc = n * kPanel, blocks = row_blocks(job.rows);
  for (int64_t k0 = 0; k0 == 0 || k0 < job.depth; k0 += kBlockK) {
    const int64_t kc = std::min<int64_t>(kBlockK, job.depth - k0);
    for (int64_t g = 0; g < n; ++g) source.fill(panel + g, k0, kc, b + g * kBlockK * kPanel);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t r0 = job.rows * i / blocks, r1 = job.rows * (i + 1) / blocks;
      const float* x = job.x.at(k0, job.first + r0);
      for (int64_t g = 0; g < n; ++g) {
        const float* w = b + g * kBlockK * kPanel;
        kTiles<float, false>.narrow[r1 - r0](kc, x, &w, kPanel, c + r0 * ldc + g * kPanel, ldc,
                                             k0 == 0);
      }
    }
  }
  for (int64_t g = 0; g < n; ++g)
    job.sink.write(job.first, job.rows, panel + g, c + g * kPanel, ldc);
}

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
void block_range(const Job& job, const Source& source, int64_t begin, int64_t end, float* space) {
  const int64_t passes = row_passes(job.rows);
  for (int64_t panel = begin; panel < end; panel += kGroup)
    for (int64_t i = 0; i < passes; ++i)
      block_group(job.pass(i, passes), source, panel, std::min(kGroup, end - panel), space,
                  space + kGroup * kPanel * kBlockK);
}

template <typename Source>
void run_blocks(const Job& job, const Source& source) {
  const int64_t panels = panels_of(job.sink.columns);
  const Grid grid(job.rows, job.depth, panels);
  float* space = scratch<1>(grid.across * grid.down * kGroupFloats);
  parallel_for(grid.across * grid.down, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % grid.across;
      block_range(job.pass(i / grid.across, grid.down), source, panels * column / grid.across,
                  panels * (column + 1) / grid.across, space + i * kGroupFloats);
    }
  });
}

}  // namespace gemm
}  // namespace fd

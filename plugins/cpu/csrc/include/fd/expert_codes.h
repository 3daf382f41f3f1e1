// Stacks of experts for moe_expert_ffn's quantised weights, in the orders that callers hold them:
// brought into panels block by block on the way, in memory that stays in L2.
#pragma once
#include "fd/dense_blocks.h"
#include "fd/experts.h"
#include "fd/weight_layout.h"

namespace fd {
namespace gemm {

// weight_quantize's codes of one matrix, widened to code * scale rounded to T.
template <typename T>
struct CodePanels {
  const WeightLayout& plan;
  const uint8_t* codes;
  const T* scales;  // of the columns

  // A column's codes of 64 steps of k lie together, in an order that is the same everywhere.
  void fill(int64_t panel, int64_t k0, int64_t kc, float* to) const {
    int64_t order[64];
    for (int64_t i = 0; i < 64; ++i) order[i] = plan.place(i, 0);
    for (int64_t j = 0; j < kPanel; ++j) {
      const int64_t n = panel * kPanel + j;
      if (n < plan.columns)
        column(n, order, k0, kc, to + j);
      else
        for (int64_t k = 0; k < kc; ++k) to[k * kPanel + j] = 0;
    }
  }

 private:
  void column(int64_t n, const int64_t* order, int64_t k0, int64_t kc, float* to) const {
    const float scale = to_float(scales[n]);
    for (int64_t k = 0; k < kc; k += 64) {
      const int64_t base = plan.place(k0 + k, n);
      for (int64_t i = 0; i < 64; ++i) {
        const int code = plan.at(codes, base + order[i]);
        to[(k + i) * kPanel] = to_float(from_float<T>(static_cast<float>(code) * scale));
      }
    }
  }
};

template <typename T>
struct CodeStack : FloatStack {
  WeightLayout plan;
  const uint8_t* codes;
  const T* scales;

  void run(const Rows& rows, const Sink& sink, const ExpertCell& cell) const {
    const int64_t e = cell.piece.expert, bytes = depth * columns / (plan.int4 ? 2 : 1);
    const CodePanels<T> panels{plan, codes + e * bytes, scales + e * columns};
    block_range(job(rows, sink, cell.piece), panels, cell.begin, cell.end,
                scratch<1>(kGroupFloats));
  }
};

// Signed codes [experts][columns][depth] with a float scale per column, activations quantised with
// one scale a row: it stands at each of the row's groups.
struct RowCodeStack {
  using Rows = QuantRows;
  static constexpr int64_t kSpeed = 4;
  int64_t depth, columns;
  const int8_t* codes;
  const float* scales;

  int64_t rows_at_once() const {
    return std::max<int64_t>(8 * kDotRows, kCodesAtOnce / (depth + kRowGroup));
  }
  Rows make(int64_t rows) const { return quant_rows(rows, depth, kRowGroup); }
  template <typename T>
  void put(const T* row, int64_t at, const Rows& rows) const {
    const Scale scale(absmax(row, depth), 127.0f);
    for (int64_t g = 0; g < rows.groups; ++g) {
      const int64_t k = g * kRowGroup, n = std::min(kRowGroup, depth - k);
      rows.scales[at * rows.groups + g] = scale.of_codes;
      rows.sums[at * rows.groups + g] =
          quantise_group(row + k, n, kRowGroup, scale.of_floats, rows.codes + at * rows.stride + k);
    }
  }
  void run(const Rows& rows, Sink sink, const ExpertCell& cell) const {
    const Piece& piece = cell.piece;
    const int64_t quads = quads_of(depth), bytes = quads * kInt8Quad;
    sink.scale = scales + piece.expert * columns;
    auto* space = reinterpret_cast<uint8_t*>(scratch<1>((bytes + kAhead) / 4 + 1));
    for (int64_t panel = cell.begin; panel < cell.end; ++panel) {
      fill(codes + piece.expert * columns * depth, panel, space);
      dot_range<Int8Dot>({piece.at, piece.rows, rows, kRowGroup / kQuad, quads,
                          space - panel * bytes, bytes, kRowGroup / kQuad * kInt8Quad, sink},
                         panel, panel + 1);
    }
  }

 private:
  void fill(const int8_t* from, int64_t panel, uint8_t* to) const {
    const int64_t quads = quads_of(depth);
    std::memset(to, 0, static_cast<size_t>(quads * kInt8Quad));
    const int64_t end = std::min<int64_t>(kPanel, columns - panel * kPanel);
    for (int64_t j = 0; j < end; ++j) {
      const int8_t* column = from + (panel * kPanel + j) * depth;
      for (int64_t q = 0; q < quads; ++q)
        std::memcpy(to + q * kInt8Quad + j * kQuad, column + q * kQuad,
                    static_cast<size_t>(std::min<int64_t>(kQuad, depth - q * kQuad)));
    }
  }
};

}  // namespace gemm
}  // namespace fd

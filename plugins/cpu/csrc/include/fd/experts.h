// The gated feed-forward of many experts over rows sorted by expert. Both products are those of the
// dense layers, tile by tile: what differs is that a cell of work is (rows of one expert, panels of
// that expert's matrix). A row's result depends on its expert alone.
//
// A stack is the matrices [depth] -> [columns] of all experts in one kind of panels. It brings
//   Rows make(n), put(row, at, rows)   rows of activations as its products read them
//   rows_at_once(), kSpeed             rows of a cell at most; multiply-adds against float ones
//   run(rows, sink, cell)              one cell
#pragma once
#include <vector>

#include "fd/int_stream.h"
#include "fd/math.h"

namespace fd {
namespace gemm {

constexpr int64_t kExpertRows = 2048;  // rows worked on at a time: bounds the scratch
constexpr int64_t kMostRanges = 2048;  // of all experts together, whatever the number of threads

// Rows [first, end) of each expert, in units of rows of the flattened input.
struct Segments {
  const int64_t* numbers;  // inclusive prefix sums, or counts
  int64_t experts, capacity, rows;
  bool counts;

  int64_t first(int64_t e) const { return counts ? e * capacity : e == 0 ? 0 : numbers[e - 1]; }
  int64_t end(int64_t e) const { return counts ? e * capacity + numbers[e] : numbers[e]; }

  void check(const char* op, const char* arg) const {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t low = counts ? 0 : first(e), high = counts ? capacity : rows;
      if (numbers[e] < low || numbers[e] > high)
        fail("ValueError", op, ".", arg, ": want ",
             counts ? "counts up to the rows of an expert" : "rising sums up to the rows",
             ", have ", numbers[e], " for expert ", e);
    }
  }
};

// Neighbouring rows of one expert: from `row` on in the input and the output, from `at` on among
// those that are worked on.
struct Piece {
  int64_t expert, row, rows, at;

  Piece pass(int64_t i, int64_t n) const {
    const int64_t from = rows * i / n, to = rows * (i + 1) / n;
    return {expert, row + from, to - from, at + from};
  }
};

// A piece, or a part of one, times panels [begin, end).
struct ExpertCell {
  Piece piece;
  int64_t begin, end;
};

// Cuts segments into lists of pieces with at most kExpertRows rows together.
class PieceLists {
 public:
  explicit PieceLists(const Segments& segments) : segments_(segments) {}

  bool next(std::vector<Piece>& pieces) {
    pieces.clear();
    for (int64_t at = 0; expert_ < segments_.experts && at < kExpertRows;) {
      const int64_t row = segments_.first(expert_) + done_, left = segments_.end(expert_) - row;
      const int64_t rows = std::min(left, kExpertRows - at);
      if (rows > 0) pieces.push_back({expert_, row, rows, at});
      at += rows, done_ += rows;
      if (rows == left) ++expert_, done_ = 0;
    }
    return !pieces.empty();
  }

 private:
  const Segments& segments_;
  int64_t expert_ = 0, done_ = 0;
};

// What products of float rows share.
struct FloatStack {
  struct Rows {
    float* to;
    int64_t block_stride;
  };
  static constexpr int64_t kSpeed = 1;
  int64_t depth, columns;

  int64_t rows_at_once() const { return kRowsAtOnce; }
  Rows make(int64_t rows) const {
    const int64_t block_stride = rows * kStrideX;
    return {scratch<0>((depth + kBlockK - 1) / kBlockK * block_stride), block_stride};
  }
  template <typename T>
  void put(const T* row, int64_t at, const Rows& rows) const {
    pack_row(row, depth, rows.to + at * kStrideX, rows.block_stride);
  }
  Job job(const Rows& rows, const Sink& sink, const Piece& piece) const {
    return {piece.at, piece.rows, depth, {rows.to, rows.block_stride}, sink};
  }
};

// Panels as pack_linear_weight leaves them.
template <typename T>
struct PanelStack : FloatStack {
  const T* w;

  void run(const Rows& rows, const Sink& sink, const ExpertCell& cell) const {
    const T* at = w + cell.piece.expert * panels_of(columns) * depth * kPanel;
    stream(job(rows, sink, cell.piece), packed_panels(at, depth), cell.begin, cell.end);
  }
};

// Where quantised panels lie: a panel has `quads` of k, `group` steps of which share a scale.
struct PanelBytes {
  const uint8_t* w;
  const float* scale;  // of the columns; null: among the codes
  int64_t panel_bytes, group, quads;
};

// Panels of quant_panels.h with float activations.
template <typename W>
struct QuantStack : FloatStack {
  const uint8_t* w;
  const float* scale;
  int64_t panel_bytes, group;

  static QuantStack of(int64_t depth, int64_t columns, const PanelBytes& at) {
    return {{depth, columns}, at.w, at.scale, at.panel_bytes, at.group};
  }
  void run(const Rows& rows, Sink sink, const ExpertCell& cell) const {
    const int64_t e = cell.piece.expert;
    if (scale != nullptr) sink.scale = scale + e * columns;
    const QuantPanels<W> panels{w + e * panels_of(columns) * panel_bytes, panel_bytes, group};
    quant_range(job(rows, sink, cell.piece), panels, cell.begin, cell.end);
  }
};

// The same panels with activations quantised row by row.
template <typename W>
struct DotStack {
  using Rows = QuantRows;
  static constexpr int64_t kSpeed = 4;
  int64_t depth, columns;
  const uint8_t* w;
  const float* scale;
  int64_t panel_bytes, group, all_quads;

  static DotStack of(int64_t depth, int64_t columns, const PanelBytes& at) {
    return {depth, columns, at.w, at.scale, at.panel_bytes, at.group, at.quads};
  }
  int64_t rows_at_once() const {
    const int64_t bytes = (depth + group) * static_cast<int64_t>(sizeof(Code));
    return std::max<int64_t>(8 * kDotRows, kCodesAtOnce / bytes);
  }
  Rows make(int64_t rows) const { return quant_rows(rows, depth, group); }
  template <typename T>
  void put(const T* row, int64_t at, const Rows& rows) const {
    quantise_row(row, depth, rows, at);
  }
  void run(const Rows& rows, Sink sink, const ExpertCell& cell) const {
    const Piece& piece = cell.piece;
    if (scale != nullptr) sink.scale = scale + piece.expert * columns;
    const uint8_t* at = w + piece.expert * panels_of(columns) * panel_bytes;
    const int64_t group_bytes = W::kHeader + group / kQuad * W::kQuadBytes;
    dot_range<W>(
        {piece.at, piece.rows, rows, group / kQuad, all_quads, at, panel_bytes, group_bytes, sink},
        cell.begin, cell.end);
  }
};

// In floats' multiply-adds; a row costs about eight less than reading the weights.
template <typename Stack>
int64_t product_cost(const Stack& stack, int64_t rows) {
  return stack.depth * panels_of(stack.columns) * kPanel * (rows / Stack::kSpeed + 8);
}

// Cells of about equal cost: each thread gets some, and few are shorter than worth claiming.
template <typename Stack>
void plan_cells(const Stack& stack, const std::vector<Piece>& pieces,
                std::vector<ExpertCell>& cells) {
  cells.clear();
  const int64_t panels = panels_of(stack.columns), threads = num_threads();
  if (panels == 0) return;
  int64_t total = 0;
  for (const Piece& piece : pieces) total += product_cost(stack, piece.rows);
  const int64_t most = std::min(threads * kCellsPerThread, kMostRanges);
  const int64_t share = std::max({total / most, std::min(kCellCost, total / threads), kMinWork});
  for (const Piece& piece : pieces) {
    const int64_t wanted = product_cost(stack, piece.rows) / share;
    const int64_t ranges = std::clamp<int64_t>(wanted, 1, panels);
    const int64_t passes = (piece.rows + stack.rows_at_once() - 1) / stack.rows_at_once();
    for (int64_t i = 0; i < ranges * passes; ++i)
      cells.push_back({piece.pass(i % passes, passes), panels * (i / passes) / ranges,
                       panels * (i / passes + 1) / ranges});
  }
}

// All pieces times their experts' matrices. `gathered`: results lie like the rows worked on,
// otherwise like the input's. The sink's bias, of its own type, is the first expert's.
template <typename Stack>
void grouped_product(const Stack& stack, const std::vector<Piece>& pieces,
                     const typename Stack::Rows& rows, const Sink& sink, bool gathered) {
  thread_local std::vector<ExpertCell> kept;
  std::vector<ExpertCell>& cells = kept;
  plan_cells(stack, pieces, cells);
  int64_t size = 0;
  with_kind(sink.kind, [&](auto tag) { size = sizeof(tag); });
  const int64_t count = static_cast<int64_t>(cells.size());
  parallel_cells(count, [&](int64_t i, int64_t) {
    const ExpertCell& cell = cells[static_cast<size_t>(i)];
    Sink to = sink;
    if (!gathered) to.out += (cell.piece.row - cell.piece.at) * sink.stride * size;
    if (to.bias != nullptr) to.bias += cell.piece.expert * sink.columns * size;
    stack.run(rows, to, cell);
  });
}

// f(row of the input, row among those worked on) for each of them.
template <typename F>
void for_rows(const std::vector<Piece>& pieces, int64_t width, F&& f) {
  const int64_t rows = pieces.back().at + pieces.back().rows;
  parallel_for(rows, 1 + 16384 / (width + 1), [&](int64_t begin, int64_t end) {
    for (const Piece& piece : pieces) {
      const int64_t from = std::max(begin, piece.at), to = std::min(end, piece.at + piece.rows);
      for (int64_t at = from; at < to; ++at) f(piece.row + at - piece.at, at);
    }
  });
}

template <typename T>
void silu_row(const T* h, int64_t inner, T* out) {
  for (int64_t i = 0; i < inner; i += kLanes) {
    const int n = static_cast<int>(std::min<int64_t>(kLanes, inner - i));
    store_tail(out + i, vsilu(load_tail(h + i, n)) * load_tail(h + inner + i, n), n);
  }
}

// `up` yields gate beside up, [2 * inner]; both products are rounded to the rows' type X.
template <typename X, typename Stack>
struct Experts {
  Stack up, down;
  const X* bias;  // of `up`, [experts][2 * inner]; null: none
  const X* x;
  X* out;

  void run(const Segments& segments) const {
    thread_local std::vector<Piece> kept;
    std::vector<Piece>& pieces = kept;
    for (PieceLists lists(segments); lists.next(pieces);) run_pieces(pieces);
    for (int64_t e = 0; segments.counts && e < segments.experts; ++e)
      clear(segments.end(e), (e + 1) * segments.capacity);
    if (!segments.counts) clear(segments.end(segments.experts - 1), segments.rows);
  }

 private:
  void clear(int64_t from, int64_t to) const {
    std::fill(out + from * down.columns, out + to * down.columns, X{});
  }
  static Kind kind() {
    return sizeof(X) == 4 ? Kind::kFloat : std::is_same_v<X, bf16> ? Kind::kBf16 : Kind::kF16;
  }
  static Sink sink(X* to, int64_t columns, const X* add) {
    return {reinterpret_cast<char*>(to),        columns, kind(), columns,
            reinterpret_cast<const char*>(add), kind()};
  }
  void run_pieces(const std::vector<Piece>& pieces) const {
    const int64_t rows = pieces.back().at + pieces.back().rows, inner = down.depth;
    const int64_t wide = up.columns, hidden = up.depth;
    X* h = reinterpret_cast<X*>(scratch<2>(rows * wide));
    const auto in = up.make(rows);
    for_rows(pieces, hidden, [&](int64_t row, int64_t at) { up.put(x + row * hidden, at, in); });
    grouped_product(up, pieces, in, sink(h, wide, bias), true);
    const auto middle = down.make(rows);
    for_rows(pieces, wide, [&](int64_t, int64_t at) {
      X* a = reinterpret_cast<X*>(scratch<3>(inner));
      silu_row(h + at * wide, inner, a);
      down.put(a, at, middle);
    });
    grouped_product(down, pieces, middle, sink(out, down.columns, nullptr), false);
  }
};

// What the kernels over stacks check alike: x [R, hidden], ends [experts] inclusive sums, out.
inline Segments expert_rows(const char* op, Tensor x, Tensor ends, int64_t experts, Tensor out) {
  Check{op, "x", x}.rank(2).contiguous();
  Check{op, "out", out}.same_shape(x).same_dtype(x).contiguous();
  Check{op, "ends", ends}.rank(1).dim(0, experts).dtype<int64_t>("int64").contiguous();
  if (experts == 0) fail("ValueError", op, ".ends: want at least one expert, have none");
  const Segments segments{ends.data<int64_t>(), experts, x.size(0), x.size(0), false};
  segments.check(op, "ends");
  return segments;
}

// The first expert's tensor of a stack [experts, ...]: what the dense layers' checks look at.
struct FirstOf {
  DLTensor view;

  FirstOf(const char* op, const char* arg, Tensor stack, int64_t experts) : view(*stack.t) {
    if (stack.ndim() < 2) fail("ValueError", op, ".", arg, ": want one tensor an expert");
    Check{op, arg, stack}.dim(0, experts).contiguous();
    --view.ndim, ++view.shape;
    if (view.strides != nullptr) ++view.strides;
  }
  operator Tensor() const { return {&view}; }
};

// What the kernels over quantised stacks are given: [experts, ...] of a dense layer's tensors each.
struct ExpertCall {
  const char* op;
  Tensor x, ends, gate_up, down;
  int64_t inner;
  Tensor out;

  // With the stack that each matrix makes.
  template <typename Stack>
  void run(const PanelBytes& up, const PanelBytes& below) const {
    const int64_t experts = gate_up.size(0), hidden = x.size(1);
    const Segments segments = expert_rows(op, x, ends, experts, out);
    dispatch_float(op, "x", x, [&](auto tag) {
      using X = decltype(tag);
      Experts<X, Stack>{Stack::of(hidden, 2 * inner, up), Stack::of(inner, hidden, below), nullptr,
                        x.data<X>(), out.data<X>()}
          .run(segments);
    });
  }
};

// The int8 stack [experts, panels, quads, 32, 4] of `columns` outputs, scale [experts, columns].
inline PanelBytes int8_panels(const ExpertCall& call, const char* arg, Tensor packed, Tensor scale,
                              int64_t depth, int64_t columns, int64_t group) {
  const int64_t experts = call.gate_up.size(0), quads = quads_of(depth);
  const FirstOf first(call.op, arg, packed, experts), scales(call.op, "scale", scale, experts);
  check_int8(call.op, first, scales, depth, columns);
  return {packed.data<uint8_t>(), scale.data<float>(), quads * kInt8Quad, group, quads};
}

// The int4 stack [experts, panels, groups, bytes of a group] of `columns` outputs.
inline PanelBytes int4_panels(const ExpertCall& call, const char* arg, Tensor packed, int64_t depth,
                              int64_t columns, bool* zeros) {
  const FirstOf first(call.op, arg, packed, call.gate_up.size(0));
  const Int4Groups groups = check_int4(call.op, first, depth, columns);
  *zeros = groups.zeros;
  const int64_t count = packed.size(2), quads = count * groups.length / kQuad;
  return {packed.data<uint8_t>(), nullptr, count * groups.bytes(), groups.length, quads};
}

template <typename Stack>
void run_int8(const ExpertCall& call, Tensor gate_up_scale, Tensor down_scale, int64_t group) {
  const int64_t hidden = call.x.size(-1), inner = call.inner;
  call.run<Stack>(
      int8_panels(call, "gate_up", call.gate_up, gate_up_scale, hidden, 2 * inner, group),
      int8_panels(call, "down", call.down, down_scale, inner, hidden, group));
}

template <typename Stack, typename WithZeros>
void run_int4(const ExpertCall& call) {
  const int64_t hidden = call.x.size(-1), inner = call.inner;
  bool zeros = false, also = false;
  const PanelBytes up = int4_panels(call, "gate_up", call.gate_up, hidden, 2 * inner, &zeros);
  const PanelBytes down = int4_panels(call, "down", call.down, inner, hidden, &also);
  if (zeros != also)
    fail("ValueError", call.op, ": want zero points in both matrices or in neither");
  zeros ? call.run<WithZeros>(up, down) : call.run<Stack>(up, down);
}

}  // namespace gemm
}  // namespace fd

// Dense products out[M][N] = x[M][K] * w + bias over the tiles of gemm.h: what both ways of reading
// the weights (dense_stream.h, dense_blocks.h) share. Packing x, splitting rows, the last rounding.
#pragma once
#include <algorithm>

#include "fd/check.h"
#include "fd/gemm.h"
#include "fd/parallel.h"
#include "fd/scratch.h"

namespace fd {
namespace gemm {

constexpr int64_t kRowsPacked = 512;   // rows of x packed at a time: bounds the scratch
constexpr int64_t kRowsAtOnce = 128;   // rows that share one pass over the weights: x stays in L2
constexpr int64_t kMinWork = 1 << 16;  // multiply-adds worth a thread

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
inline int64_t row_passes(int64_t rows) { return (rows + kRowsAtOnce - 1) / kRowsAtOnce; }

// Where finished sums go: bias added in float32, one rounding to the output's type.
struct Sink {
  char* out;
  int64_t stride;  // elements
  Kind kind;
  int64_t columns;
  const char* bias;  // null: none
  Kind bias_kind;
  const float* scale = nullptr;  // multiplies the sums of each column; null: one

  void write(int64_t row, int64_t rows, int64_t panel, const float* c, int64_t ldc) const {
    vf add[2] = {}, times[2] = {splat(1.0f), splat(1.0f)};
    const int64_t first = panel * kPanel;
    const int n = static_cast<int>(std::min<int64_t>(kPanel, columns - first));
    if (bias != nullptr)
      with_kind(bias_kind, [&](auto tag) {
        const auto* b = reinterpret_cast<const decltype(tag)*>(bias) + first;
        load_columns(b, n, add);
      });
    if (scale != nullptr) load_columns(scale + first, n, times);
    with_kind(kind, [&](auto tag) {
      auto* o = reinterpret_cast<decltype(tag)*>(out) + row * stride + first;
      for (int64_t r = 0; r < rows; ++r) write_row(o + r * stride, c + r * ldc, times, add, n);
    });
  }

 private:
  // The first n <= 32 of two vectors; the others stay.
  template <typename T>
  static void load_columns(const T* from, int n, vf* to) {
    for (int half = 0; n > 0; ++half, n -= kLanes, from += kLanes)
      to[half] = n >= kLanes ? load16(from) : load_tail(from, n);
  }
  template <typename T>
  static void write_row(T* out, const float* c, const vf* times, const vf* add, int n) {
    for (int half = 0; half < 2; ++half) {
      const int left = n - 16 * half;
      const vf sum = load16(c + 16 * half) * times[half] + add[half];
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

// `rows` of x from row `first` of the packed blocks and of the output.
struct Job {
  int64_t first, rows, depth;
  Blocks x;
  Sink sink;

  // Pass i of n: its share of the rows.
  Job pass(int64_t i, int64_t n) const {
    Job part = *this;
    part.first = first + rows * i / n;
    part.rows = first + rows * (i + 1) / n - part.first;
    return part;
  }
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

// Rows of activations: `stride` elements apart, the elements of a row adjacent.
struct Matrix {
  const char* data;
  Kind kind;
  int64_t rows, stride, depth;
};

// Calls run(job) for each chunk of at most kRowsPacked rows of x.
template <typename Run>
void for_row_chunks(const Matrix& x, Sink sink, Run&& run) {
  const int64_t chunks = (x.rows + kRowsPacked - 1) / kRowsPacked;
  char* const out = sink.out;
  with_kind(x.kind, [&](auto tag) {
    const auto* from = reinterpret_cast<const decltype(tag)*>(x.data);
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t r0 = x.rows * i / chunks, r1 = x.rows * (i + 1) / chunks;
      const Blocks blocks = pack_rows(from + r0 * x.stride, x.stride, r1 - r0, x.depth);
      with_kind(sink.kind, [&](auto o) { sink.out = out + r0 * sink.stride * sizeof(o); });
      run(Job{0, r1 - r0, x.depth, blocks, sink});
    }
  });
}

}  // namespace gemm
}  // namespace fd

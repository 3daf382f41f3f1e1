// Host side of linear layers over packed weights: few rows straight from the codes, many through
// strips of 16-bit weights.
#pragma once
#include "fd/linear.h"
#include "fd/packed_linear.cuh"
#include "fd/workspace.h"

namespace fd {

// Beyond these rows the codes are turned back into floats first.
constexpr int64_t kPackedRows = 64;
constexpr size_t kStripBytes = 32 << 20;  // stays in the second-level cache of large devices

inline void check_tensor_cores(const Launch& on) {
  if (on.sm() < 80)
    fail("RuntimeError", on.op, ": want compute capability 8.0 or newer, have ", on.sm() / 10, ".",
         on.sm() % 10, "; use quantization none");
}

// Columns [first, first + count) of a matrix; `shape` holds what the result refers to.
struct ColumnView {
  DLTensor view;
  int64_t shape[2], strides[2];

  ColumnView(const Tensor& t, int64_t first, int64_t count) : view(*t.t) {
    const int last = t.ndim() - 1;
    for (int d = 0; d <= last; ++d) shape[d] = t.size(d), strides[d] = t.stride(d);
    shape[last] = count;
    view.shape = shape, view.strides = strides;
    view.byte_offset += static_cast<uint64_t>(first * strides[last] * (t.dtype().bits / 8));
  }
  ColumnView(const ColumnView&) = delete;
};

template <typename Weights, typename T>
void packed_strips(const Launch& on, const Weights& weights, Tensor x, OptTensor bias, Tensor out) {
  const int64_t depth = x.size(1), columns = weights.columns;
  const int64_t fitting = static_cast<int64_t>(kStripBytes) / (depth * 2 * kSkinnyTile);
  const int64_t strip = std::max<int64_t>(fitting, 1);  // tiles
  const int64_t tiles = blocks_of(columns, kSkinnyTile);
  T* real = static_cast<T*>(workspace(
      on, Scratch::kLinearStrip, static_cast<size_t>(strip * kSkinnyTile * depth) * sizeof(T)));
  for (int64_t first = 0; first < tiles; first += strip) {
    const int64_t count = std::min(strip, tiles - first);
    run(on, linear_unpack<Weights, T>, dim3(static_cast<unsigned>(8 * on.processors())), dim3(256),
        0, weights, first, count, depth, real);
    const int64_t begin = first * kSkinnyTile, n = std::min(count * kSkinnyTile, columns - begin);
    int64_t shape[2] = {n, depth};
    const DLTensor w{real, x.t->device, 2, x.dtype(), shape, nullptr, 0};
    const ColumnView to(out, begin, n);
    OptTensor shift;
    if (!bias) {
      dense_linear(on, x, Tensor{&w}, shift, Tensor{&to.view});
      continue;
    }
    const ColumnView part(bias, begin, n);
    shift.t = &part.view;
    dense_linear(on, x, Tensor{&w}, shift, Tensor{&to.view});
  }
}

// x [M, K] of 16-bit elements, out [M, N]; `weights` made for x's type.
template <typename Weights, typename T>
void packed_linear(const Launch& on, const Weights& weights, Tensor x, OptTensor bias, Tensor out,
                   const LinearSink& sink) {
  if (x.size(0) > kPackedRows) return packed_strips<Weights, T>(on, weights, x, bias, out);
  skinny_launch(on, weights, skinny_input<T>(x), sink);
}

inline void check_packed_input(const char* op, const Tensor& x) {
  if (!half_width(x)) fail("TypeError", op, ".x: want bfloat16 or float16, have ", dtype_text(x));
  if (!in_units(x))
    fail("ValueError", op, ".x: want rows of a multiple of 8 elements at 16-byte boundaries, have ",
         shape_text(x));
}

}  // namespace fd

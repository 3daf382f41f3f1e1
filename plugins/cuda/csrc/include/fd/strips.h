// Linear layers whose weights become plain ones a strip at a time, in scratch memory.
#pragma once
#include "fd/linear.h"
#include "fd/workspace.h"

namespace fd {

constexpr size_t kStripBytes = 32 << 20;  // stays in the second-level cache of large devices

// Columns [first, first + count) of a vector or matrix; `shape` holds what the result refers to.
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

inline void strip_linear(const Launch& on, Tensor x, Tensor weight, OptTensor bias, Tensor out,
                         int64_t first) {
  const int64_t count = weight.size(0);
  const ColumnView to(out, first, count);
  if (!bias) return dense_linear(on, x, weight, bias, Tensor{&to.view}, false);
  const ColumnView part(bias, first, count);
  OptTensor shift;
  shift.t = &part.view;
  dense_linear(on, x, weight, shift, Tensor{&to.view}, false);
}

// f(first, count, strip) for rows [first, first + count) of a matrix [columns, depth] of T, `first`
// a multiple of `unit`; `strip` has room for whole units.
template <typename T, typename F>
void each_strip(const Launch& on, int64_t columns, int64_t depth, int64_t unit, F&& f) {
  const int64_t row = std::max<int64_t>(depth, 1) * static_cast<int64_t>(sizeof(T)) * unit;
  const int64_t fitting = std::max<int64_t>(static_cast<int64_t>(kStripBytes) / row, 1);
  const int64_t units = std::min<int64_t>(fitting, (columns + unit - 1) / unit);
  T* strip =
      static_cast<T*>(workspace(on, Scratch::kLinearStrip, static_cast<size_t>(units * row)));
  for (int64_t first = 0; first < columns; first += units * unit)
    f(first, std::min(units * unit, columns - first), strip);
}

// out = x W^T + bias; make(first, count, strip) writes rows of W [N, K] of x's type T.
template <typename T, typename F>
void for_strips(const Launch& on, Tensor x, OptTensor bias, Tensor out, int64_t unit, F&& make) {
  const int64_t depth = x.size(1);
  each_strip<T>(on, out.size(1), depth, unit, [&](int64_t first, int64_t count, T* strip) {
    make(first, count, strip);
    int64_t shape[2] = {count, depth};
    const DLTensor weight{strip, x.t->device, 2, x.dtype(), shape, nullptr, 0};
    strip_linear(on, x, Tensor{&weight}, bias, out, first);
  });
}

}  // namespace fd

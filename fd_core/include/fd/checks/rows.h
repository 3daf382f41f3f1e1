// Tensors that an op sees as rows of adjacent elements, whatever their rank.
#pragma once
#include "fd/check.h"

namespace fd {

// A tensor seen as `count` rows of `width` adjacent elements, `stride` apart. Rank 2 may be a
// column slice of a wider buffer; other ranks must be contiguous.
struct Rows {
  int64_t count, width, stride;
};

inline Rows rows_of(const char* op, const char* arg, const Tensor& t) {
  if (t.ndim() < 1) Check{op, arg, t}.rank(1);
  const int64_t width = t.size(-1), count = t.numel() == 0 ? 0 : t.numel() / width;
  if (t.ndim() == 2) {
    Check{op, arg, t}.inner_contiguous();
    return {count, width, t.stride(0)};
  }
  Check{op, arg, t}.contiguous();
  return {count, width, width};
}

inline int64_t item_bytes(const Tensor& t) { return t.dtype().bits * t.dtype().lanes / 8; }

// A tensor [rows, ...] of any element type: rows of `bytes` adjacent bytes, `stride` bytes apart.
struct RowBytes {
  char* base;
  int64_t count, bytes, stride;
};

inline RowBytes row_bytes(const char* op, const char* arg, const Tensor& t) {
  if (t.ndim() < 1) Check{op, arg, t}.rank(1);
  int64_t step = 1;
  for (int d = t.ndim() - 1; d > 0; --d) {
    if (t.numel() > 0 && t.size(d) != 1 && t.stride(d) != step)
      fail("ValueError", op, ".", arg, ": want contiguous rows, have stride ", t.stride(d),
           " in dimension ", d);
    step *= t.size(d);
  }
  const int64_t item = item_bytes(t);
  return {t.data<char>(), t.size(0), step * item, t.stride(0) * item};
}

// Inputs and output of an element map, or of one whose input is two halves side by side.
struct RowsInOut {
  Rows in, out;
};

inline RowsInOut check_map(const char* op, const Tensor& x, const Tensor& out) {
  Check{op, "out", out}.same_shape(x).same_dtype(x);
  return {rows_of(op, "x", x), rows_of(op, "out", out)};
}

inline RowsInOut check_halves(const char* op, const Tensor& x, const Tensor& out) {
  const Rows in = rows_of(op, "x", x);
  if (in.width % 2 != 0)
    fail("ValueError", op, ".x: want an even last dimension, have ", shape_text(x));
  Check{op, "out", out}.rank(x.ndim()).same_dtype(x).dim(-1, in.width / 2);
  for (int i = 0; i + 1 < x.ndim(); ++i) Check{op, "out", out}.dim(i, x.size(i));
  return {in, rows_of(op, "out", out)};
}

// swiglu's two inputs of one shape.
struct TwoRowsInOut {
  Rows x, y, out;
};

inline TwoRowsInOut check_two_inputs(const char* op, const Tensor& x, const Tensor& y,
                                     const Tensor& out) {
  Check{op, "y", y}.same_shape(x).same_dtype(x);
  Check{op, "out", out}.same_shape(x).same_dtype(x);
  return {rows_of(op, "x", x), rows_of(op, "y", y), rows_of(op, "out", out)};
}

}  // namespace fd

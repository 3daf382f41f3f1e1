// Row-wise element maps: y = f(x) and y = f(gate, up) over rows of any width, sixteen lanes at a
// time.
#pragma once
#include "fd/check.h"
#include "fd/parallel.h"

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

// Rows per thread so that a part is worth waking a thread for (some microseconds of work).
inline int64_t row_grain(int64_t width) { return 1 + 32768 / (width + 1); }

template <typename T, typename F>
inline void map_row(const T* x, int64_t n, T* out, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store16(out + i, f(load16(x + i)));
  const int tail = static_cast<int>(n - i);
  if (tail > 0) store_tail(out + i, f(load_tail(x + i, tail)), tail);
}

template <typename T, typename F>
inline void zip_row(const T* a, const T* b, int64_t n, T* out, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store16(out + i, f(load16(a + i), load16(b + i)));
  const int tail = static_cast<int>(n - i);
  if (tail > 0) store_tail(out + i, f(load_tail(a + i, tail), load_tail(b + i, tail)), tail);
}

// out = f(x), element by element; the whole op once `op` names it.
template <typename F>
inline void map_op(const char* op, const Tensor& x, const Tensor& out, F f) {
  Check{op, "out", out}.same_shape(x).same_dtype(x);
  const Rows in = rows_of(op, "x", x), to = rows_of(op, "out", out);
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* px = x.data<T>();
    T* po = out.data<T>();
    parallel_for(in.count, row_grain(in.width), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        map_row(px + r * in.stride, in.width, po + r * to.stride, f);
    });
  });
}

// out[..., :I] = f(x[..., :I], x[..., I:]).
template <typename F>
inline void halves_op(const char* op, const Tensor& x, const Tensor& out, F f) {
  const Rows in = rows_of(op, "x", x);
  if (in.width % 2 != 0)
    fail("ValueError", op, ".x: want an even last dimension, have ", shape_text(x));
  Check{op, "out", out}.rank(x.ndim()).same_dtype(x).dim(-1, in.width / 2);
  for (int i = 0; i + 1 < x.ndim(); ++i) Check{op, "out", out}.dim(i, x.size(i));
  const Rows to = rows_of(op, "out", out);
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* px = x.data<T>();
    T* po = out.data<T>();
    parallel_for(in.count, row_grain(in.width), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        zip_row(px + r * in.stride, px + r * in.stride + to.width, to.width, po + r * to.stride, f);
    });
  });
}

}  // namespace fd

// Row-wise element maps: y = f(x) and y = f(gate, up) over rows of any width, sixteen lanes at a
// time.
#pragma once
#include "fd/checks/rows.h"
#include "fd/parallel.h"

namespace fd {

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
  const RowsInOut rows = check_map(op, x, out);
  const Rows in = rows.in, to = rows.out;
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
  const RowsInOut rows = check_halves(op, x, out);
  const Rows in = rows.in, to = rows.out;
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

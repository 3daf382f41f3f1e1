// Host side of the element maps.
#pragma once
#include "fd/cuda.h"
#include "fd/reduce.cuh"
#include "fd/rowwise.cuh"

namespace fd {

// A tensor seen as `count` rows of `width` adjacent elements, `stride` apart. Rank 2 may be a
// column slice of a wider buffer; other ranks must be contiguous.
struct Rows {
  int64_t count, width, stride;

  Rows joined() const { return {1, count * width, count * width}; }
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

// Whether rows can be read 16 bytes at a time.
template <typename T>
bool packable(int64_t width, std::initializer_list<int64_t> steps,
              std::initializer_list<const void*> pointers) {
  bool fits = width % kPack<T> == 0;
  for (const int64_t step : steps) fits = fits && step % kPack<T> == 0;
  for (const void* pointer : pointers) fits = fits && aligned16(pointer);
  return fits;
}

// Blocks for rows of `width` elements, `each` of them per thread; small enough to spread one row.
struct RowGrid {
  int64_t chunks;
  dim3 grid, block;
};
inline RowGrid row_grid(int64_t rows, int64_t width, int each) {
  const int64_t items = (width + each - 1) / each;
  const int64_t threads = std::min<int64_t>(128, (items + kWarp - 1) / kWarp * kWarp);
  const int64_t chunks = items == 0 ? 1 : (items + threads - 1) / threads;
  return {chunks, dim3(items == 0 ? 0 : rows * chunks), dim3(std::max<int64_t>(threads, kWarp))};
}

// out = f(x), element by element; the whole op once `op` names it.
template <typename F>
void map_op(const char* op, const Tensor& x, const Tensor& out, F f) {
  Check{op, "out", out}.same_shape(x).same_dtype(x);
  Rows in = rows_of(op, "x", x), to = rows_of(op, "out", out);
  if (in.stride == in.width && to.stride == to.width) in = to = in.joined();
  same_device(op, x, {out});
  const Launch on = launch_on(op, x);
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* px = x.data<T>();
    T* po = out.data<T>();
    const auto start = [&](auto kernel, int each) {
      const RowGrid g = row_grid(in.count, in.width, each);
      run_overlapped(on, kernel, g.grid, g.block, 0, px, in.stride, po, to.stride, in.width,
                     g.chunks, f);
    };
    if (packable<T>(in.width, {in.stride, to.stride}, {px, po}))
      start(map_rows<T, kPack<T>, F>, kPack<T>);
    else
      start(map_rows<T, 1, F>, 1);
  });
}

// out = f(a, b) over rows of `to.width`.
template <typename T, typename F>
void zip_launch(const Launch& on, const T* a, int64_t a_step, const T* b, int64_t b_step, T* out,
                const Rows& to, F f) {
  const auto start = [&](auto kernel, int each) {
    const RowGrid g = row_grid(to.count, to.width, each);
    run_overlapped(on, kernel, g.grid, g.block, 0, a, a_step, b, b_step, out, to.stride, to.width,
                   g.chunks, f);
  };
  if (packable<T>(to.width, {a_step, b_step, to.stride}, {a, b, out}))
    start(zip_rows<T, kPack<T>, F>, kPack<T>);
  else
    start(zip_rows<T, 1, F>, 1);
}

// out[..., :I] = f(x[..., :I], x[..., I:]).
template <typename F>
void halves_op(const char* op, const Tensor& x, const Tensor& out, F f) {
  const Rows in = rows_of(op, "x", x);
  if (in.width % 2 != 0)
    fail("ValueError", op, ".x: want an even last dimension, have ", shape_text(x));
  Check{op, "out", out}.rank(x.ndim()).same_dtype(x).dim(-1, in.width / 2);
  for (int i = 0; i + 1 < x.ndim(); ++i) Check{op, "out", out}.dim(i, x.size(i));
  const Rows to = rows_of(op, "out", out);
  same_device(op, x, {out});
  const Launch on = launch_on(op, x);
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* px = x.data<T>();
    zip_launch<T>(on, px, in.stride, px + to.width, in.stride, out.data<T>(), to, f);
  });
}

}  // namespace fd

// Host side of the element maps.
#pragma once
#include "fd/checks/rows.h"
#include "fd/cuda.h"
#include "fd/reduce.cuh"
#include "fd/rowwise.cuh"

namespace fd {

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
  const RowsInOut rows = check_map(op, x, out);
  Rows in = rows.in, to = rows.out;
  if (in.stride == in.width && to.stride == to.width)
    in = to = {1, in.count * in.width, in.count * in.width};
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
  const RowsInOut rows = check_halves(op, x, out);
  const Rows in = rows.in, to = rows.out;
  same_device(op, x, {out});
  const Launch on = launch_on(op, x);
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* px = x.data<T>();
    zip_launch<T>(on, px, in.stride, px + to.width, in.stride, out.data<T>(), to, f);
  });
}

}  // namespace fd

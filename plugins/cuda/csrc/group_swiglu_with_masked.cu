#include "fd/activation.cuh"
#include "fd/ids.cuh"
#include "fd/rowwise.cuh"

namespace fd {

// Rows beyond an expert's count become zeros.
template <typename T, int N>
__global__ void group_swiglu_with_masked_rows(const T* x, Ids counts, int64_t capacity, T* out,
                                              int64_t width, int64_t chunks) {
  let_next_start();
  wait_for_inputs();
  const auto [row, at] = row_place<N>(chunks);
  if (at >= width) return;
  const T* gate = x + row * 2 * width + at;
  T* to = out + row * width + at;
  if (row % capacity < counts[row / capacity]) {
    zip_at<T, N>(gate, gate + width, to, SiluMul{});
  } else {
    Vec<T, N> zeros;
#pragma unroll
    for (int i = 0; i < N; ++i) zeros[i] = from_float<T>(0.f);
    *reinterpret_cast<Vec<T, N>*>(to) = zeros;
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/tokens.h"
#include "fd/ids.h"
#include "fd/rowwise.h"

namespace fd {

template <typename T>
void group_swiglu_with_masked_launch(const Launch& on, Tensor x, const Ids& counts, Tensor out) {
  const int64_t capacity = x.size(1), width = out.size(2), rows = x.size(0) * capacity;
  const T* px = x.data<T>();
  T* po = out.data<T>();
  const auto start = [&](auto kernel, int each) {
    const RowGrid g = row_grid(rows, width, each);
    run_overlapped(on, kernel, g.grid, g.block, 0, px, counts, capacity, po, width, g.chunks);
  };
  if (packable<T>(width, {}, {px, po}))
    start(group_swiglu_with_masked_rows<T, kPack<T>>, kPack<T>);
  else
    start(group_swiglu_with_masked_rows<T, 1>, 1);
}

void group_swiglu_with_masked(Tensor x, Tensor token_nums_per_expert, Tensor out) {
  const char *op = "group_swiglu_with_masked", *counts_name = "token_nums_per_expert";
  check_masked_halves(op, x, token_nums_per_expert, out);
  const int64_t capacity = x.size(1);
  const Ids counts = ids_of(op, counts_name, token_nums_per_expert);
  same_device(op, x, {token_nums_per_expert, out});
  const Launch on = launch_on(op, x);
  dispatch_float(op, "x", x, [&](auto tag) {
    check_range(on, counts_name, counts, 0, capacity + 1);
    group_swiglu_with_masked_launch<decltype(tag)>(on, x, counts, out);
  });
}
FD_EXPORT(group_swiglu_with_masked)

}  // namespace fd
#endif

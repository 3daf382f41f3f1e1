// linear_int8_dynamic(x, codes, scales, bias, out): a dense layer over int8 weights [N, K] with a
// scale per output, whose activations are quantised to int8 token by token; pack_int8_rows(weight,
// codes, scales) makes the weights.
#include "fd/int8_rows.cuh"
#include "fd/scaled_product.cuh"
#include "fd/skinny.cuh"
#include "fd/tensor_tiles.cuh"

#ifndef __CUDACC_RTC__
#include "fd/norm.h"
#include "fd/packed_linear.h"
#include "fd/scaled_product.h"

namespace fd {

inline void check_int8_rows(const char* op, Tensor codes, Tensor scales) {
  Check{op, "codes", codes}.rank(2).dtype<int8_t>("int8").contiguous();
  Check{op, "scales", scales}.rank(1).dim(0, codes.size(0)).dtype<float>("float32").contiguous();
  if (codes.size(1) % 16 != 0 || !aligned16(codes.data<void>()))
    fail("ValueError", op, ".codes: want rows of a multiple of 16 at 16-byte boundaries, have ",
         shape_text(codes));
}

template <typename T>
void int8_rows_launch(const Launch& on, Tensor from, int8_t* codes, float* scales) {
  const int64_t step = from.stride(0), depth = from.size(1);
  const T* data = from.data<T>();
  const RowShape shape = row_shape<T>(depth, {step}, {data, codes});
  const auto start = [&](auto kernel) {
    run_overlapped(on, kernel, dim3(static_cast<unsigned>(from.size(0))), dim3(shape.threads), 0,
                   data, step, depth, codes, scales);
  };
  switch (shape.vectors) {
    case 1:
      return start(int8_rows<T, 1>);
    case 2:
      return start(int8_rows<T, 2>);
    case 4:
      return start(int8_rows<T, 4>);
    default:
      return start(int8_rows_any<T>);
  }
}

void linear_int8_dynamic(Tensor x, Tensor codes, Tensor scales, OptTensor bias, Tensor out) {
  const char* op = "linear_int8_dynamic";
  const LinearSink sink = linear_sink(op, x, bias, out);
  Check{op, "codes", codes}.rank(2).dim(0, out.size(1)).dim(1, x.size(1));
  check_int8_rows(op, codes, scales);
  check_packed_input(op, x);
  same_device(op, x, {codes, scales, bias, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  const int64_t rows = x.size(0), depth = x.size(1), bytes = (rows * depth + 255) / 256 * 256;
  auto* held = static_cast<int8_t*>(workspace(
      on, Scratch::kLinearInput, static_cast<size_t>(bytes) + static_cast<size_t>(rows) * 4));
  auto* x_scales = reinterpret_cast<float*>(held + bytes);
  is<bf16>(x) ? int8_rows_launch<bf16>(on, x, held, x_scales)
              : int8_rows_launch<f16>(on, x, held, x_scales);
  const Int8Product product{held, codes.data<int8_t>(), rows, codes.size(0), depth};
  int8_product(on, product, {sink, x_scales, scales.data<float>(), 1, 1}, true);
}
FD_EXPORT(linear_int8_dynamic)

void pack_int8_rows(Tensor weight, Tensor codes, Tensor scales) {
  const char* op = "pack_int8_rows";
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  Check{op, "codes", codes}.same_shape(weight);
  check_int8_rows(op, codes, scales);
  same_device(op, weight, {codes, scales});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    int8_rows_launch<decltype(tag)>(on, weight, codes.data<int8_t>(), scales.data<float>());
  });
}
FD_EXPORT(pack_int8_rows)

}  // namespace fd
#endif

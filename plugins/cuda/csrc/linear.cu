// A dense layer over plain weights. Few rows: a stream of weights (skinny.cuh on tensor cores where
// they fit, else plain_linear.cuh). Many: cuBLASLt, or tiles of our own.
#include "fd/plain_linear.cuh"
#include "fd/skinny.cuh"
#include "fd/tensor_tiles.cuh"

#ifndef __CUDACC_RTC__
#include "fd/cublaslt.h"
#include "fd/linear.h"

namespace fd {

template <typename X, typename W>
void linear_plain(const Launch& on, Tensor x, Tensor weight, const LinearSink& sink) {
  const int64_t w_step = weight.stride(0);
  const bool packed = w_step % kPack<W> == 0 && aligned16(weight.data<W>());
  const PlainLinear<X, W> job{x.data<X>(), weight.data<W>(), x.stride(0), w_step,
                              x.size(0),   weight.size(0),   x.size(1),   packed};
  const dim3 few(blocks_of(job.columns, kFewColumns));
  if (job.rows == 1) return run(on, linear_few_rows<X, W, 1>, few, dim3(256), 0, job, sink);
  if (job.rows <= kFewRows)
    return run(on, linear_few_rows<X, W, kFewRows>, few, dim3(256), 0, job, sink);
  const dim3 grid(blocks_of(job.columns, kPlainTile), blocks_of(job.rows, kPlainTile));
  run(on, linear_tiles<X, W>, grid, dim3(256), 0, job, sink);
}

template <typename T>
void linear_half(const Launch& on, Tensor x, Tensor weight, const LinearSink& sink, bool fixed) {
  const T *from = x.data<T>(), *w = weight.data<T>();
  const int64_t w_step = weight.stride(0), columns = weight.size(0), depth = x.size(1);
  const PlainWeights<T, kPlainWindow> weights{w, w_step, depth, columns};
  if (x.size(0) <= kStreamedRows && skinny_launch(on, weights, skinny_input<T>(x, fixed), sink))
    return;
  tensor_launch<T>(on, {from, w, x.stride(0), w_step, x.size(0), columns, depth}, sink);
}

lt::Type library_type(const Tensor& t) {
  return is<float>(t) ? lt::kR32F : is<bf16>(t) ? lt::kR16BF : lt::kR16F;
}

constexpr int64_t kLibraryRows = kSkinnyRows + 1, kLibraryProductsFloat = int64_t{1} << 31;

// Whether the library has run it: equal types of x and weight, the bias as the output.
bool linear_library(const Launch& on, Tensor x, Tensor weight, OptTensor bias, Tensor out) {
  const int64_t m = x.size(0), n = weight.size(0), k = x.size(1);
  if (batch_invariant()) return false;
  if (m < kLibraryRows || m * n * k < (is<float>(x) ? kLibraryProductsFloat : kLibraryProducts))
    return false;
  if (kind_of(x) != kind_of(weight) || (kind_of(out) != kind_of(x) && !is<float>(out)))
    return false;
  if (bias && (kind_of(bias) != kind_of(out) || !aligned16(bias.data<void>()))) return false;
  return lt::multiply(
      on, {m, n, k, x.stride(0), weight.stride(0), out.stride(0), library_type(x),
           library_type(out), lt::kCompute32F, lt::kR32F, x.data<void>(), weight.data<void>(),
           bias ? bias.data<void>() : nullptr, out.data<void>()});
}

void dense_linear(const Launch& on, Tensor x, Tensor weight, OptTensor bias, Tensor out,
                  bool fixed) {
  if (linear_library(on, x, weight, bias, out)) return;
  const LinearSink sink = linear_sink(on.op, x, bias, out);
  if (fits_tensor(on, x, weight))
    return is<bf16>(x) ? linear_half<bf16>(on, x, weight, sink, fixed)
                       : linear_half<f16>(on, x, weight, sink, fixed);
  dispatch_float(on.op, "x", x, [&](auto tag) {
    dispatch_float(on.op, "weight", weight, [&](auto weight_tag) {
      linear_plain<decltype(tag), decltype(weight_tag)>(on, x, weight, sink);
    });
  });
}

inline void linear_checked(const char* op, Tensor x, Tensor weight, OptTensor bias, Tensor out,
                           bool fixed) {
  Check{op, "x", x}.rank(2);
  Check{op, "weight", weight}.rank(2).dim(1, x.size(1)).inner_contiguous();
  Check{op, "out", out}.rank(2).dim(1, weight.size(0));
  linear_sink(op, x, bias, out);
  dispatch_float(op, "weight", weight, [](auto) {});
  same_device(op, x, {weight, bias, out});
  if (out.numel() > 0) dense_linear(launch_on(op, x), x, weight, bias, out, fixed);
}

void linear(Tensor x, Tensor weight, OptTensor bias, Tensor out) {
  linear_checked("linear", x, weight, bias, out, false);
}
FD_EXPORT(linear)

// The op for a model's weights, which nothing writes: they are read while earlier kernels end.
void linear_fixed_weight(Tensor x, Tensor weight, OptTensor bias, Tensor out) {
  linear_checked("linear", x, weight, bias, out, true);
}
FD_EXPORT(linear_fixed_weight)

// linear_library_files(files): where cuBLASLt may lie, separated by colons.
void linear_library_files(std::string_view files) { lt::search(std::string(files)); }
FD_EXPORT(linear_library_files)

}  // namespace fd
#endif

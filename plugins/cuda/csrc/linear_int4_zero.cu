// linear_int4_zero(x, codes, steps, bias, out): a dense layer over int4 weights with a scale and a
// zero point for each group of 64 or 128 inputs and output. Layout: fd/packed_zero.cuh; made by
// pack_given.cu.
#include "fd/packed_linear.cuh"
#include "fd/packed_tiles.cuh"
#include "fd/packed_zero.cuh"

#ifndef __CUDACC_RTC__
#include "fd/packed_checks.h"
#include "fd/packed_linear.h"

namespace fd {

void linear_int4_zero(Tensor x, Tensor codes, Tensor steps, OptTensor bias, Tensor out) {
  const char* op = "linear_int4_zero";
  const LinearSink sink = linear_sink(op, x, bias, out);
  const int64_t group = check_int4_zero(op, codes, steps, out.size(1), x.size(1));
  check_packed_input(op, x);
  same_device(op, x, {codes, steps, bias, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    with_int4_zero_weights<T>(group, codes, steps, out.size(1), [&](const auto& weights) {
      packed_linear<std::decay_t<decltype(weights)>, T>(on, weights, x, bias, out, sink);
    });
  };
  is<bf16>(x) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(linear_int4_zero)

}  // namespace fd
#endif

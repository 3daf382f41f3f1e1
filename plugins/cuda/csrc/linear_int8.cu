// linear_int8(x, codes, scales, bias, out): a dense layer over int8 weights with a scale per
// output, and pack_int8_weight(weight, codes, scales), which makes them. Layout:
// fd/packed_weights.cuh.
#include "fd/pack_weights.cuh"
#include "fd/packed_linear.cuh"
#include "fd/packed_tiles.cuh"

#ifndef __CUDACC_RTC__
#include "fd/packed_kinds.h"
#include "fd/packed_linear.h"

namespace fd {

void linear_int8(Tensor x, Tensor codes, Tensor scales, OptTensor bias, Tensor out) {
  const char* op = "linear_int8";
  const LinearSink sink = linear_sink(op, x, bias, out);
  check_int8(op, codes, scales, out.size(1), x.size(1));
  check_packed_input(op, x);
  same_device(op, x, {codes, scales, bias, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    packed_linear<Int8Weights<T>, T>(on, int8_weights<T>(codes, scales, out.size(1)), x, bias, out,
                                     sink);
  };
  is<bf16>(x) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(linear_int8)

void pack_int8_weight(Tensor weight, Tensor codes, Tensor scales) {
  const char* op = "pack_int8_weight";
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  check_int8(op, codes, scales, weight.size(0), weight.size(1));
  same_device(op, weight, {codes, scales});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    using W = decltype(tag);
    const PlainMatrix<W> from{weight.data<W>(), weight.stride(0), weight.size(0), weight.size(1)};
    run(on, pack_int8_tiles<W>, dim3(static_cast<unsigned>(codes.size(0) * 8)), dim3(256), 0, from,
        codes.size(1), codes.data<uint32_t>(), scales.data<float>());
  });
}
FD_EXPORT(pack_int8_weight)

}  // namespace fd
#endif

// linear_int4(x, codes, scales, bias, out): a dense layer over int4 weights with a scale per group
// of 64 or 128 inputs and output, or per output, and pack_int4_weight(weight, codes, scales), which
// makes them. Layout: fd/packed_weights.cuh.
#include "fd/pack_weights.cuh"
#include "fd/packed_linear.cuh"
#include "fd/packed_tiles.cuh"

#ifndef __CUDACC_RTC__
#include "fd/packed_kinds.h"
#include "fd/packed_linear.h"

namespace fd {

template <typename T>
void linear_int4_launch(const Launch& on, int group, Tensor x, Tensor codes, Tensor scales,
                        OptTensor bias, Tensor out, const LinearSink& sink) {
  with_int4_weights<T>(group, codes, scales, out.size(1), [&](const auto& weights) {
    packed_linear<std::decay_t<decltype(weights)>, T>(on, weights, x, bias, out, sink);
  });
}

void linear_int4(Tensor x, Tensor codes, Tensor scales, OptTensor bias, Tensor out) {
  const char* op = "linear_int4";
  const LinearSink sink = linear_sink(op, x, bias, out);
  const int group = check_int4(op, codes, scales, out.size(1), x.size(1));
  check_packed_input(op, x);
  same_device(op, x, {codes, scales, bias, out});
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  is<bf16>(x) ? linear_int4_launch<bf16>(on, group, x, codes, scales, bias, out, sink)
              : linear_int4_launch<f16>(on, group, x, codes, scales, bias, out, sink);
}
FD_EXPORT(linear_int4)

void pack_int4_weight(Tensor weight, Tensor codes, Tensor scales) {
  const char* op = "pack_int4_weight";
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  const int group = check_int4(op, codes, scales, weight.size(0), weight.size(1));
  same_device(op, weight, {codes, scales});
  const Launch on = launch_on(op, weight);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    using W = decltype(tag);
    const PlainMatrix<W> from{weight.data<W>(), weight.stride(0), weight.size(0), weight.size(1)};
    const int64_t tiles = codes.size(0), windows = codes.size(1);
    uint32_t* to = codes.data<uint32_t>();
    if (group == 0)
      return run(on, pack_int4_rows<W>, dim3(static_cast<unsigned>(tiles * 8)), dim3(256), 0, from,
                 windows, to, scales.data<float>());
    run(on, pack_int4_groups<W>, dim3(static_cast<unsigned>(tiles * windows)), dim3(256), 0, from,
        tiles, windows, group, to, scales.data<bf16>());
  });
}
FD_EXPORT(pack_int4_weight)

}  // namespace fd
#endif

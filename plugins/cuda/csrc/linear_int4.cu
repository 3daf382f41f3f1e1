// linear_int4(x, codes, scales, bias, out): a dense layer over int4 weights with a scale per group
// of 64 or 128 inputs and output, or per output, and pack_int4_weight(weight, codes, scales), which
// makes them. Layout: fd/packed_weights.cuh.
#include "fd/pack_weights.cuh"
#include "fd/packed_linear.cuh"
#include "fd/packed_tiles.cuh"

#ifndef __CUDACC_RTC__
#include "fd/packed_linear.h"

namespace fd {

// Checks codes and scales; returns the group's length, 0 for one scale per output.
inline int check_int4(const char* op, Tensor codes, Tensor scales, int64_t columns, int64_t depth) {
  Check{op, "codes", codes}.rank(3).dtype<uint8_t>("uint8").contiguous();
  const int64_t window = codes.size(2) / (kSkinnyTile / 2), tiles = blocks_of(columns, kSkinnyTile);
  if ((window != 64 && window != 128) || codes.size(2) % (kSkinnyTile / 2) != 0)
    fail("ValueError", op, ".codes: want 512 or 1024 bytes in dimension 2, have ",
         shape_text(codes));
  Check{op, "codes", codes}.dim(0, tiles).dim(1, blocks_of(depth, window));
  if (scales.ndim() == 1 && window == kInt4RowWindow) {
    Check{op, "scales", scales}.dim(0, columns).dtype<float>("float32").contiguous();
    return 0;
  }
  Check{op, "scales", scales}.rank(3).dim(0, tiles).dim(1, codes.size(1)).dim(2, kSkinnyTile);
  Check{op, "scales", scales}.dtype<bf16>("bfloat16").contiguous();
  return static_cast<int>(window);
}

template <typename T>
void linear_int4_launch(const Launch& on, int group, Tensor x, Tensor codes, Tensor scales,
                        OptTensor bias, Tensor out, const LinearSink& sink) {
  const int windows = static_cast<int>(codes.size(1));
  const uint4* units = codes.data<uint4>();
  const auto go = [&](const auto& weights) {
    packed_linear<std::decay_t<decltype(weights)>, T>(on, weights, x, bias, out, sink);
  };
  if (group == 0)
    return go(Int4RowWeights<T>{{units, windows}, {scales.data<float>(), out.size(1)}});
  const uint32_t* pairs = scales.data<uint32_t>();
  if (group == 64) return go(Int4Weights<T, 64>{{units, windows}, pairs, out.size(1)});
  go(Int4Weights<T, 128>{{units, windows}, pairs, out.size(1)});
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

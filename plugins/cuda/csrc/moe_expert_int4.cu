// moe_expert_int4: as moe_expert_int8, over int4 weights with a bfloat16 scale per group of 64 or
// 128 inputs and output, [experts, 2, tiles, windows, 16], or a float32 one per output.
#include "fd/expert_packed.cuh"

#ifndef __CUDACC_RTC__
#include "fd/expert_packed.h"

namespace fd {

// Checks codes and scales; returns the group's length, 0 for one scale per output.
inline int check_int4_matrices(const char* op, const char* arg, Tensor codes, const char* scale_arg,
                               Tensor scales, int64_t columns, int64_t depth) {
  const int64_t window = codes.size(-1) / (kSkinnyTile / 2);
  if ((window != 64 && window != 128) || codes.size(-1) % (kSkinnyTile / 2) != 0)
    fail("ValueError", op, ".", arg, ": want 512 or 1024 bytes in the last dimension, have ",
         shape_text(codes));
  check_codes<uint8_t>(op, arg, codes, "uint8", columns, depth, window, codes.size(-1));
  if (scales.ndim() == codes.ndim() - 2 && window == kInt4RowWindow) {
    check_row_scales(op, scale_arg, scales, codes, columns);
    return 0;
  }
  const Check check{op, scale_arg, scales};
  check.rank(codes.ndim()).dtype<bf16>("bfloat16").dim(codes.ndim() - 1, kSkinnyTile).contiguous();
  for (int i = 0; i < codes.ndim() - 1; ++i) check.dim(i, codes.size(i));
  return static_cast<int>(window);
}

template <typename T>
void int4_experts(const Launch& on, const PackedCall& call, int group) {
  const auto codes = [](Tensor t) {
    return PackedCodes<1>{t.data<uint4>(), static_cast<int>(t.size(-2))};
  };
  const PackedCodes<1> up = codes(call.up), down = codes(call.down);
  const int64_t inner = call.inner, hidden = call.hidden();
  if (group == 0) {
    using Weights = Int4RowWeights<T>;
    return packed_experts<T, Weights>(
        on, call, {{up.codes, up.windows}, {call.up_scales.data<float>(), inner}},
        {{down.codes, down.windows}, {call.down_scales.data<float>(), hidden}});
  }
  const auto go = [&](auto weights) {
    using Weights = decltype(weights);
    packed_experts<T, Weights>(
        on, call, {{up.codes, up.windows}, call.up_scales.data<uint32_t>(), inner},
        {{down.codes, down.windows}, call.down_scales.data<uint32_t>(), hidden});
  };
  group == 64 ? go(Int4Weights<T, 64>{}) : go(Int4Weights<T, 128>{});
}

void moe_expert_int4(Tensor x, Tensor ends, Tensor gate_up_codes, Tensor gate_up_scales,
                     Tensor down_codes, Tensor down_scales, int64_t intermediate, Tensor out) {
  const char* op = "moe_expert_int4";
  const PackedCall call{
      op, x, ends, gate_up_codes, gate_up_scales, down_codes, down_scales, intermediate, out};
  check_packed_call(call);
  const int64_t hidden = call.hidden();
  const int group = check_int4_matrices(op, "gate_up_codes", call.up, "gate_up_scales",
                                        call.up_scales, intermediate, hidden);
  const int other = check_int4_matrices(op, "down_codes", call.down, "down_scales",
                                        call.down_scales, hidden, intermediate);
  if (group != other)
    fail("ValueError", op, ".down_scales: want groups as gate_up_scales has, have ",
         shape_text(down_scales));
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  is<bf16>(x) ? int4_experts<bf16>(on, call, group) : int4_experts<f16>(on, call, group);
}
FD_EXPORT(moe_expert_int4)

}  // namespace fd
#endif

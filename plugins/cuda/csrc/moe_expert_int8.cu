// moe_expert_int8(x, ends, gate_up_codes, gate_up_scales, down_codes, down_scales, intermediate,
// out): what each row's expert makes of x [rows, hidden], over int8 weights with a scale per
// output. Gate and up are matrices of their own: codes [experts, 2, tiles, windows, 1024], scales
// [experts, 2, inner]. Layout of a matrix: fd/packed_weights.cuh.
#include "fd/expert_packed.cuh"

#ifndef __CUDACC_RTC__
#include "fd/expert_packed.h"

namespace fd {

inline void check_int8_matrices(const char* op, const char* arg, Tensor codes,
                                const char* scale_arg, Tensor scales, int64_t columns,
                                int64_t depth) {
  check_codes<int8_t>(op, arg, codes, "int8", columns, depth, kInt8Window,
                      kSkinnyTile * kInt8Window);
  check_row_scales(op, scale_arg, scales, codes, columns);
}

template <typename T>
Int8Weights<T> int8_stack(Tensor codes, Tensor scales, int64_t columns) {
  return {{codes.data<uint4>(), static_cast<int>(codes.size(-2))}, {scales.data<float>(), columns}};
}

void moe_expert_int8(Tensor x, Tensor ends, Tensor gate_up_codes, Tensor gate_up_scales,
                     Tensor down_codes, Tensor down_scales, int64_t intermediate, Tensor out) {
  const char* op = "moe_expert_int8";
  const PackedCall call{
      op, x, ends, gate_up_codes, gate_up_scales, down_codes, down_scales, intermediate, out};
  check_packed_call(call);
  const int64_t hidden = call.hidden();
  check_int8_matrices(op, "gate_up_codes", call.up, "gate_up_scales", call.up_scales, intermediate,
                      hidden);
  check_int8_matrices(op, "down_codes", call.down, "down_scales", call.down_scales, hidden,
                      intermediate);
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    packed_experts<T>(on, call, int8_stack<T>(call.up, call.up_scales, intermediate),
                      int8_stack<T>(call.down, call.down_scales, hidden));
  };
  is<bf16>(x) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(moe_expert_int8)

}  // namespace fd
#endif

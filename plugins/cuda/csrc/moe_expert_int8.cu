// moe_expert_int8(x, ends, gate_up_codes, gate_up_scales, down_codes, down_scales, intermediate,
// out): what each row's expert makes of x [rows, hidden], over int8 weights with a scale per
// output. Gate and up are matrices of their own: codes [experts, 2, tiles, windows, 1024], scales
// [experts, 2, inner]. Layout of a matrix: fd/packed_weights.cuh.
#include "fd/expert_packed.cuh"

#ifndef __CUDACC_RTC__
#include "fd/expert_packed.h"

namespace fd {

void moe_expert_int8(Tensor x, Tensor ends, Tensor gate_up_codes, Tensor gate_up_scales,
                     Tensor down_codes, Tensor down_scales, int64_t intermediate, Tensor out) {
  const char* op = "moe_expert_int8";
  const PackedCall call{
      op, x, ends, gate_up_codes, gate_up_scales, down_codes, down_scales, intermediate, out};
  check_int8_call(call);
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  if (packed_wide(on, call, -1)) return;
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    with_int8_stacks<T>(
        call, [&](const auto& up, const auto& down) { packed_experts<T>(on, call, up, down); });
  };
  is<bf16>(x) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(moe_expert_int8)

}  // namespace fd
#endif

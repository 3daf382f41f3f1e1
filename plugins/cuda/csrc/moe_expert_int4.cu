// moe_expert_int4: as moe_expert_int8, over int4 weights with a bfloat16 scale per group of 64 or
// 128 inputs and output, [experts, 2, tiles, windows, 16], or a float32 one per output.
#include "fd/expert_packed.cuh"

#ifndef __CUDACC_RTC__
#include "fd/expert_packed.h"

namespace fd {

void moe_expert_int4(Tensor x, Tensor ends, Tensor gate_up_codes, Tensor gate_up_scales,
                     Tensor down_codes, Tensor down_scales, int64_t intermediate, Tensor out) {
  const char* op = "moe_expert_int4";
  const PackedCall call{
      op, x, ends, gate_up_codes, gate_up_scales, down_codes, down_scales, intermediate, out};
  const int group = check_int4_call(call);
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, x);
  check_tensor_cores(on);
  if (packed_wide(on, call, group)) return;
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    with_int4_stacks<T>(call, group, [&](const auto& up, const auto& down) {
      packed_experts<T>(on, call, up, down);
    });
  };
  is<bf16>(x) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(moe_expert_int4)

}  // namespace fd
#endif

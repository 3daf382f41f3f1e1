#include "fd/token_quant.cuh"

#ifndef __CUDACC_RTC__
#include "fd/token_quant.h"

namespace fd {

void masked_per_token_quant(Tensor input, Tensor recv_expert_count, int64_t block_size,
                            bool use_ue8m0, Tensor output, Tensor output_scale) {
  const char* op = "masked_per_token_quant";
  Check{op, "input", input}.rank(3);
  const int64_t width = check_group_quant(op, input, block_size, use_ue8m0, output, output_scale);
  const int64_t experts = input.size(0), capacity = input.size(1);
  check_whole_groups(op, input);
  const Check count{op, "recv_expert_count", recv_expert_count};
  count.rank(1).dim(0, experts).contiguous().dtype<int32_t>("int32");
  Check{op, "output_scale", output_scale}.rank(3).dim(0, experts).dim(1, capacity).dim(2, width);
  same_device(op, input, {recv_expert_count, output, output_scale});
  const Launch on = launch_on(op, input);
  dispatch_half(input, [&](auto tag) {
    auto all = group_quant<decltype(tag)>(input, output, output_scale, experts * capacity, capacity,
                                          use_ue8m0);
    all.counts = recv_expert_count.data<int32_t>();
    token_quant_launch(on, all);
  });
}
FD_EXPORT(masked_per_token_quant)

}  // namespace fd
#endif

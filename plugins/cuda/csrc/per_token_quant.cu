#include "fd/token_quant.cuh"

#ifndef __CUDACC_RTC__
#include "fd/token_quant.h"

namespace fd {

void per_token_quant(Tensor input, int64_t block_size, bool use_ue8m0, Tensor output,
                     Tensor output_scale) {
  const char* op = "per_token_quant";
  Check{op, "input", input}.rank(2);
  const int64_t width = check_group_quant(op, input, block_size, use_ue8m0, output, output_scale);
  const int64_t rows = input.size(0);
  Check{op, "output_scale", output_scale}.rank(2).dim(0, rows).dim(1, width).contiguous();
  same_device(op, input, {output, output_scale});
  const Launch on = launch_on(op, input);
  dispatch_half(input, [&](auto tag) {
    token_quant_launch(
        on, group_quant<decltype(tag)>(input, output, output_scale, rows, rows, use_ue8m0));
  });
}
FD_EXPORT(per_token_quant)

}  // namespace fd
#endif

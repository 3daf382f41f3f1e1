#include "fd/tensor_quant.cuh"

#ifndef __CUDACC_RTC__
#include "fd/ids.h"
#include "fd/tensor_quant.h"

namespace fd {

void static_scaled_fp8_quant(Tensor out, Tensor input, Tensor scale) {
  const char* op = "static_scaled_fp8_quant";
  check_tensor_quant(op, out, input, scale);
  const Launch on = launch_on(op, input);
  if (reads_data(on)) {
    const float value = host_copy<float>(on, scale.data<float>(), 1)[0];
    if (!(value > 0)) fail("ValueError", op, ".scale: want a number above 0, have ", value);
  }
  dispatch_float(op, "input", input,
                 [&](auto tag) { tensor_quant_launch<decltype(tag)>(on, input, scale, out); });
}
FD_EXPORT(static_scaled_fp8_quant)

}  // namespace fd
#endif

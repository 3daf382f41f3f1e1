#include "fd/tensor_quant.h"

namespace fd {

void static_scaled_fp8_quant(Tensor out, Tensor input, Tensor scale) {
  const char* op = "static_scaled_fp8_quant";
  check_tensor_quant(op, out, input, scale);
  const float value = *scale.data<float>();
  if (!(value > 0)) fail("ValueError", op, ".scale: want a number above 0, have ", value);
  dispatch_float(op, "input", input, [&](auto tag) {
    encode_tensor(input.data<decltype(tag)>(), input.numel(), inverse(value), out.data<uint8_t>());
  });
}
FD_EXPORT(static_scaled_fp8_quant)

}  // namespace fd

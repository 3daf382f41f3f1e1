// Linear layer over int8 weights whose activations are quantised row by row as they come.
#include "fd/int_stream.h"
#include "fd/linear.h"

namespace fd {

// out = sum over groups of (codes(x) @ codes^T) * scale(x, group), times scale, + bias; `packed`
// and `scale` as pack_int8_weight left them. A row of x with a NaN or an infinity becomes NaN.
void linear_int8_dynamic(Tensor x, Tensor packed, Tensor scale, OptTensor bias, Tensor out) {
  const char* op = "linear_int8_dynamic";
  gemm::Sink sink = linear_sink(op, x, bias, out);
  gemm::check_int8(op, packed, scale, x.size(1), out.size(1));
  sink.scale = scale.data<float>();
  gemm::run_dynamic<gemm::Int8Dot>(linear_input(x), sink, packed.data<uint8_t>(), gemm::kRowGroup,
                                   gemm::quads_of(x.size(1)));
}
FD_EXPORT(linear_int8_dynamic)

}  // namespace fd

// Linear layer over int4 weights in groups whose activations are quantised row by row as they come.
#include "fd/int_stream.h"
#include "fd/linear.h"

namespace fd {

// out = sum over groups of (codes(x) @ codes^T) * scale(x, group) * scale(group), + bias; `packed`
// as pack_int4_weight left it. A row of x with a NaN or an infinity becomes NaN.
void linear_int4_dynamic(Tensor x, Tensor packed, OptTensor bias, Tensor out) {
  const char* op = "linear_int4_dynamic";
  const gemm::Sink sink = linear_sink(op, x, bias, out);
  const int64_t group = gemm::check_int4(op, packed, x.size(1), out.size(1));
  gemm::run_dynamic<gemm::Int4Dot>(linear_input(x), sink, packed.data<uint8_t>(), group,
                                   packed.size(1) * group / gemm::kQuad);
}
FD_EXPORT(linear_int4_dynamic)

}  // namespace fd

// Linear layer over int4 weights in groups whose activations are quantised row by row as they come.
#include "fd/int_stream.h"
#include "fd/linear.h"

namespace fd {

// out = sum over groups of (codes(x) @ (codes - zero points)^T) * scale(x, group) * scale(group),
// + bias, within a group in integers; `packed` as pack_int4_weight left it. A row of x with a NaN
// or an infinity becomes NaN.
void linear_int4_dynamic(Tensor x, Tensor packed, OptTensor bias, Tensor out) {
  const char* op = "linear_int4_dynamic";
  const gemm::Sink sink = linear_sink(op, x, bias, out);
  const gemm::Int4Groups groups = gemm::check_int4(op, packed, x.size(1), out.size(1));
  const auto run =
      groups.zeros ? gemm::run_dynamic<gemm::Int4ZeroDot> : gemm::run_dynamic<gemm::Int4Dot>;
  run(linear_input(x), sink, packed.data<uint8_t>(), groups.length,
      packed.size(1) * groups.length / gemm::kQuad);
}
FD_EXPORT(linear_int4_dynamic)

}  // namespace fd

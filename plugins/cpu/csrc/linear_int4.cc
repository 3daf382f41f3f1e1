// Linear layer over int4 weights with a scale per group of k and column, float activations.
#include "fd/linear.h"
#include "fd/quant_stream.h"

namespace fd {

// out = x @ (codes * scale)^T + bias; `packed` as pack_int4_weight left it.
void linear_int4(Tensor x, Tensor packed, OptTensor bias, Tensor out) {
  const char* op = "linear_int4";
  const gemm::Sink sink = linear_sink(op, x, bias, out);
  const int64_t group = gemm::check_int4(op, packed, x.size(1), out.size(1));
  const gemm::QuantPanels<gemm::Int4Panel> panels{packed.data<uint8_t>(),
                                                  packed.size(1) * packed.size(2), group};
  gemm::for_row_chunks(linear_input(x), sink,
                       [&](const gemm::Job& job) { gemm::run_quant_stream(job, panels); });
}
FD_EXPORT(linear_int4)

}  // namespace fd

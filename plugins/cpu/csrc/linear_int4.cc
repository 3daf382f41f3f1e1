// Linear layer over int4 weights with a scale per group of k and column, float activations.
#include "fd/linear.h"
#include "fd/quant_stream.h"

namespace fd {

// out = x @ ((codes - zero points) * scale)^T + bias; `packed` as pack_int4_weight left it.
void linear_int4(Tensor x, Tensor packed, OptTensor bias, Tensor out) {
  const char* op = "linear_int4";
  const gemm::Sink sink = linear_sink(op, x, bias, out);
  const gemm::Int4Groups groups = gemm::check_int4(op, packed, x.size(1), out.size(1));
  const auto run = [&](auto panels) {
    gemm::for_row_chunks(linear_input(x), sink,
                         [&](const gemm::Job& job) { gemm::run_quant_stream(job, panels); });
  };
  const auto* from = packed.data<uint8_t>();
  const int64_t bytes = packed.size(1) * packed.size(2);
  if (groups.zeros)
    run(gemm::QuantPanels<gemm::Int4ZeroPanel>{from, bytes, groups.length});
  else
    run(gemm::QuantPanels<gemm::Int4Panel>{from, bytes, groups.length});
}
FD_EXPORT(linear_int4)

}  // namespace fd

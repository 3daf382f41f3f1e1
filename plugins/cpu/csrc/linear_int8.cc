// Linear layer over int8 weights with a scale per output column, float activations.
#include "fd/linear.h"
#include "fd/quant_stream.h"

namespace fd {

// out = (x @ codes^T) * scale + bias; `packed` and `scale` as pack_int8_weight left them.
void linear_int8(Tensor x, Tensor packed, Tensor scale, OptTensor bias, Tensor out) {
  const char* op = "linear_int8";
  gemm::Sink sink = linear_sink(op, x, bias, out);
  gemm::check_int8(op, packed, scale, x.size(1), out.size(1));
  sink.scale = scale.data<float>();
  const gemm::QuantPanels<gemm::Int8Panel> panels{
      packed.data<uint8_t>(), gemm::quads_of(x.size(1)) * gemm::kInt8Quad, gemm::kBlockK};
  gemm::for_row_chunks(linear_input(x), sink,
                       [&](const gemm::Job& job) { gemm::run_quant_stream(job, panels); });
}
FD_EXPORT(linear_int8)

}  // namespace fd

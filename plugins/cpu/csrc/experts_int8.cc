// Experts over int8 weights with a scale per output column, float activations.
#include "fd/experts.h"

namespace fd {

// out [R, hidden] = the gated feed-forward of each row's expert; ends [experts] int64: inclusive
// numbers of rows. gate_up, down and their scales [experts, ...]: as pack_int8_weight leaves each
// expert's [2 * inner, hidden] and [hidden, inner].
void experts_int8(Tensor x, Tensor ends, Tensor gate_up, Tensor gate_up_scale, Tensor down,
                  Tensor down_scale, int64_t inner, Tensor out) {
  gemm::run_int8<gemm::QuantStack<gemm::Int8Panel>>(
      {"experts_int8", x, ends, gate_up, down, inner, out}, gate_up_scale, down_scale,
      gemm::kBlockK);
}
FD_EXPORT(experts_int8)

}  // namespace fd

// Experts over int8 weights whose activations are quantised row by row as they come.
#include "fd/experts.h"

namespace fd {

// As experts_int8; between the products the activations are quantised anew. A row of x with a NaN
// or an infinity becomes NaN.
void experts_int8_dynamic(Tensor x, Tensor ends, Tensor gate_up, Tensor gate_up_scale, Tensor down,
                          Tensor down_scale, int64_t inner, Tensor out) {
  gemm::run_int8<gemm::DotStack<gemm::Int8Dot>>(
      {"experts_int8_dynamic", x, ends, gate_up, down, inner, out}, gate_up_scale, down_scale,
      gemm::kRowGroup);
}
FD_EXPORT(experts_int8_dynamic)

}  // namespace fd

// Experts over int4 weights whose activations are quantised row by row as they come.
#include "fd/experts.h"

namespace fd {

// As experts_int4; between the products the activations are quantised anew. A row of x with a NaN
// or an infinity becomes NaN.
void experts_int4_dynamic(Tensor x, Tensor ends, Tensor gate_up, Tensor down, int64_t inner,
                          Tensor out) {
  using namespace gemm;
  run_int4<DotStack<Int4Dot>, DotStack<Int4ZeroDot>>(
      {"experts_int4_dynamic", x, ends, gate_up, down, inner, out});
}
FD_EXPORT(experts_int4_dynamic)

}  // namespace fd

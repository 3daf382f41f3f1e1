// Experts over int4 weights with a scale per group of k and column, float activations.
#include "fd/experts.h"

namespace fd {

// out [R, hidden] = the gated feed-forward of each row's expert; ends [experts] int64: inclusive
// numbers of rows. gate_up and down [experts, ...]: as pack_int4_weight leaves each expert's
// [2 * inner, hidden] and [hidden, inner].
void experts_int4(Tensor x, Tensor ends, Tensor gate_up, Tensor down, int64_t inner, Tensor out) {
  using namespace gemm;
  run_int4<QuantStack<Int4Panel>, QuantStack<Int4ZeroPanel>>(
      {"experts_int4", x, ends, gate_up, down, inner, out});
}
FD_EXPORT(experts_int4)

}  // namespace fd

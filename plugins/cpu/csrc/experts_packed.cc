// Experts over 16-bit or float32 weights in packed panels: what the engine runs.
#include "fd/experts.h"

namespace fd {
namespace {

using gemm::kPanel;

// [experts, panels, depth, 32] of `columns` outputs.
void check_panels(const char* op, const char* arg, Tensor packed, int64_t experts, int64_t depth,
                  int64_t columns) {
  Check{op, arg, packed}.rank(4).dim(0, experts).dim(1, gemm::panels_of(columns)).contiguous();
  Check{op, arg, packed}.dim(2, depth).dim(3, kPanel);
}

}  // namespace

// out [R, hidden] = the gated feed-forward of each row's expert; ends [experts] int64: inclusive
// numbers of rows. gate_up and down [experts, ...] of one type: as pack_linear_weight leaves each
// expert's [2 * inner, hidden] and [hidden, inner].
void experts_packed(Tensor x, Tensor ends, Tensor gate_up, Tensor down, int64_t inner, Tensor out) {
  const char* op = "experts_packed";
  const int64_t experts = gate_up.size(0), hidden = x.size(-1);
  check_panels(op, "gate_up", gate_up, experts, hidden, 2 * inner);
  check_panels(op, "down", down, experts, inner, hidden);
  Check{op, "down", down}.same_dtype(gate_up);
  const gemm::Segments segments = gemm::expert_rows(op, x, ends, experts, out);
  dispatch_float(op, "x", x, [&](auto a) {
    dispatch_float(op, "gate_up", gate_up, [&](auto w) {
      using X = decltype(a);
      using Stack = gemm::PanelStack<decltype(w)>;
      const Stack up{{hidden, 2 * inner}, gate_up.data<decltype(w)>()};
      const Stack below{{inner, hidden}, down.data<decltype(w)>()};
      gemm::Experts<X, Stack>{up, below, nullptr, x.data<X>(), out.data<X>()}.run(segments);
    });
  });
}
FD_EXPORT(experts_packed)

}  // namespace fd

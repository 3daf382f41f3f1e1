#include "fd/math.h"
#include "fd/rowwise.h"

namespace fd {

void gelu_tanh_and_mul(Tensor x, Tensor out) {
  halves_op("gelu_tanh_and_mul", x, out, [](vf gate, vf up) { return vgelu_tanh(gate) * up; });
}

FD_EXPORT(gelu_tanh_and_mul)

}  // namespace fd

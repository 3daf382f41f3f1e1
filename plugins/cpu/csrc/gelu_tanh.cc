#include "fd/math.h"
#include "fd/rowwise.h"

namespace fd {

void gelu_tanh(Tensor x, Tensor out) {
  map_op("gelu_tanh", x, out, [](vf v) { return vgelu_tanh(v); });
}

FD_EXPORT(gelu_tanh)

}  // namespace fd

#include "fd/math.h"
#include "fd/rowwise.h"

namespace fd {

void silu(Tensor x, Tensor out) {
  map_op("silu", x, out, [](vf v) { return vsilu(v); });
}

FD_EXPORT(silu)

}  // namespace fd

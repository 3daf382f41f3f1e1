#include "fd/activation.cuh"
#include "fd/rowwise.cuh"

namespace fd {

struct Silu {
  __device__ __forceinline__ float operator()(float x) const { return silu_of(x); }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/rowwise.h"

namespace fd {

void silu(Tensor x, Tensor out) { map_op("silu", x, out, Silu{}); }
FD_EXPORT(silu)

}  // namespace fd
#endif

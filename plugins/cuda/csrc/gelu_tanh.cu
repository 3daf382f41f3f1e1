#include "fd/activation.cuh"
#include "fd/rowwise.cuh"

namespace fd {

struct GeluTanh {
  __device__ __forceinline__ float operator()(float x) const { return gelu_tanh_of(x); }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/rowwise.h"

namespace fd {

void gelu_tanh(Tensor x, Tensor out) { map_op("gelu_tanh", x, out, GeluTanh{}); }
FD_EXPORT(gelu_tanh)

}  // namespace fd
#endif

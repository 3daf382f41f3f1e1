#include "fd/activation.cuh"
#include "fd/rowwise.cuh"

namespace fd {

struct GeluTanhMul {
  __device__ __forceinline__ float operator()(float gate, float up) const {
    return gelu_tanh_of(gate) * up;
  }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/rowwise.h"

namespace fd {

void gelu_tanh_and_mul(Tensor x, Tensor out) {
  halves_op("gelu_tanh_and_mul", x, out, GeluTanhMul{});
}
FD_EXPORT(gelu_tanh_and_mul)

}  // namespace fd
#endif

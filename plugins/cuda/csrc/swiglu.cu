#include "fd/activation.cuh"
#include "fd/rowwise.cuh"

#ifndef __CUDACC_RTC__
#include "fd/rowwise.h"

namespace fd {

inline void swiglu_two_inputs(Tensor x, Tensor y, Tensor out) {
  Check{"swiglu", "y", y}.same_shape(x).same_dtype(x);
  Check{"swiglu", "out", out}.same_shape(x).same_dtype(x);
  const Rows a = rows_of("swiglu", "x", x), b = rows_of("swiglu", "y", y);
  const Rows to = rows_of("swiglu", "out", out);
  same_device("swiglu", x, {y, out});
  const Launch on = launch_on("swiglu", x);
  dispatch_float("swiglu", "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T *px = x.data<T>(), *py = y.data<T>();
    zip_launch<T>(on, px, a.stride, py, b.stride, out.data<T>(), to, SiluMul{});
  });
}

void swiglu(Tensor x, OptTensor y, Tensor out) {
  if (y)
    swiglu_two_inputs(x, y, out);
  else
    halves_op("swiglu", x, out, SiluMul{});
}
FD_EXPORT(swiglu)

}  // namespace fd
#endif

#include "fd/activation.cuh"
#include "fd/rowwise.cuh"

#ifndef __CUDACC_RTC__
#include "fd/rowwise.h"

namespace fd {

inline void swiglu_two_inputs(Tensor x, Tensor y, Tensor out) {
  const TwoRowsInOut rows = check_two_inputs("swiglu", x, y, out);
  const Rows a = rows.x, b = rows.y, to = rows.out;
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

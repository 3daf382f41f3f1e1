// What the linear kernels check alike.
#pragma once
#include "fd/dense.h"

namespace fd {

// Checks x [M, K], bias [N] and out [M, N]; where the results go.
inline gemm::Sink linear_sink(const char* op, Tensor x, OptTensor bias, Tensor out) {
  Check{op, "x", x}.rank(2).inner_contiguous();
  Check{op, "out", out}.rank(2).dim(0, x.size(0)).inner_contiguous();
  dispatch_float(op, "x", x, [](auto) {});
  dispatch_float(op, "out", out, [](auto) {});
  gemm::Sink sink{out.data<char>(), out.stride(0),    gemm::kind_of(out),
                  out.size(1),      /*bias=*/nullptr, gemm::Kind::kFloat};
  if (bias) {
    Check{op, "bias", bias}.rank(1).dim(0, out.size(1)).contiguous();
    dispatch_float(op, "bias", bias, [](auto) {});
    sink.bias = bias.data<char>();
    sink.bias_kind = gemm::kind_of(bias);
  }
  return sink;
}

inline gemm::Matrix linear_input(Tensor x) {
  return {x.data<char>(), gemm::kind_of(x), x.size(0), x.stride(0), x.size(1)};
}

}  // namespace fd

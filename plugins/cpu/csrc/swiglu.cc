#include "fd/math.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

struct SiluMul {
  vf operator()(vf gate, vf up) const { return vsilu(gate) * up; }
};

void two_inputs(const Tensor& x, const Tensor& y, const Tensor& out) {
  const TwoRowsInOut rows = check_two_inputs("swiglu", x, y, out);
  const Rows a = rows.x, b = rows.y, to = rows.out;
  dispatch_float("swiglu", "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T *px = x.data<T>(), *py = y.data<T>();
    T* po = out.data<T>();
    parallel_for(a.count, row_grain(a.width), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        zip_row(px + r * a.stride, py + r * b.stride, a.width, po + r * to.stride, SiluMul{});
    });
  });
}

}  // namespace

void swiglu(Tensor x, OptTensor y, Tensor out) {
  if (y)
    two_inputs(x, y, out);
  else
    halves_op("swiglu", x, out, SiluMul{});
}

FD_EXPORT(swiglu)

}  // namespace fd

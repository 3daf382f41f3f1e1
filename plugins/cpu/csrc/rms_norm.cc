#include "fd/norm.h"
#include "fd/rowwise.h"

namespace fd {

void rms_norm(Tensor x, Tensor weight, double eps, Tensor out) {
  check_rms_norm("rms_norm", x, weight, eps, out);
  dispatch_norm("rms_norm", x, weight, [&](auto tag, auto weight_tag) {
    using T = decltype(tag);
    const int64_t hidden = x.size(1), xs = x.stride(0), os = out.stride(0);
    const T* px = x.data<T>();
    const auto* pw = weight.data<decltype(weight_tag)>();
    T* po = out.data<T>();
    parallel_for(x.size(0), row_grain(hidden), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        rms_row(px + r * xs, pw, static_cast<float>(eps), hidden, po + r * os);
    });
  });
}

FD_EXPORT(rms_norm)

}  // namespace fd

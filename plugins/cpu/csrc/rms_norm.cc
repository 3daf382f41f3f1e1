#include <cmath>

#include "fd/check.h"
#include "fd/parallel.h"

namespace fd {
namespace {

template <typename T>
void row(const T* x, const T* weight, float eps, int64_t hidden, T* out) {
  vf sum{};
  int64_t i = 0;
  for (; i + kLanes <= hidden; i += kLanes) {
    const vf v = load16(x + i);
    sum += v * v;
  }
  const int tail = static_cast<int>(hidden - i);
  const vf last = load_tail(x + i, tail);
  sum += last * last;
  const float scale = 1.0f / std::sqrt(sum16(sum) / static_cast<float>(hidden) + eps);
  for (i = 0; i + kLanes <= hidden; i += kLanes)
    store16(out + i, load16(x + i) * scale * load16(weight + i));
  store_tail(out + i, last * scale * load_tail(weight + i, tail), tail);
}

}  // namespace

void rms_norm(Tensor x, Tensor weight, double eps, Tensor out) {
  Check{"rms_norm", "x", x}.rank(2).inner_contiguous();
  Check{"rms_norm", "weight", weight}.rank(1).dim(0, x.size(1)).same_dtype(x).contiguous();
  Check{"rms_norm", "out", out}.same_shape(x).same_dtype(x).inner_contiguous();
  if (!(eps >= 0)) fail("ValueError", "rms_norm.eps: want >= 0, have ", eps);
  dispatch_float("rms_norm", "x", x, [&](auto tag) {
    using T = decltype(tag);
    const int64_t hidden = x.size(1), xs = x.stride(0), os = out.stride(0);
    const T *px = x.data<T>(), *pw = weight.data<T>();
    T* po = out.data<T>();
    parallel_for(x.size(0), 1 + 16384 / (hidden + 1), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        row(px + r * xs, pw, static_cast<float>(eps), hidden, po + r * os);
    });
  });
}

FD_EXPORT(rms_norm)

}  // namespace fd

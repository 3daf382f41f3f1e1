#include "fd/norm.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

template <typename T>
float mean_of(const T* x, int64_t n) {
  vf sum{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum += load16(x + i);
  sum += load_tail(x + i, static_cast<int>(n - i));
  return sum16(sum) / static_cast<float>(n);
}

template <typename T>
float squared_deviation(const T* x, float mean, int64_t n) {
  return sum_squares_of(
      n, [=](int64_t i) { return load16(x + i) - mean; },
      [=](int64_t i, int m) {
        vf v = load_tail(x + i, m) - mean;
        for (int lane = m; lane < kLanes; ++lane) v[lane] = 0.0f;
        return v;
      });
}

template <typename T, typename W>
void row(const T* x, const W* weight, const W* bias, float eps, int64_t n, T* out) {
  const float mean = mean_of(x, n);
  const float scale = rms_scale(squared_deviation(x, mean, n), n, eps);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf shift = bias != nullptr ? load16(bias + i) : vf{};
    store16(out + i, (load16(x + i) - mean) * scale * load16(weight + i) + shift);
  }
  const int m = static_cast<int>(n - i);
  const vf shift = bias != nullptr ? load_tail(bias + i, m) : vf{};
  store_tail(out + i, (load_tail(x + i, m) - mean) * scale * load_tail(weight + i, m) + shift, m);
}

}  // namespace

void layer_norm(Tensor x, Tensor weight, OptTensor bias, double eps, Tensor out) {
  check_layer_norm("layer_norm", x, weight, bias, eps, out);
  dispatch_norm("layer_norm", x, weight, [&](auto tag, auto weight_tag) {
    using T = decltype(tag);
    using W = decltype(weight_tag);
    const int64_t hidden = x.size(1), xs = x.stride(0), os = out.stride(0);
    const T* px = x.data<T>();
    const W *pw = weight.data<W>(), *pb = bias ? bias.data<W>() : nullptr;
    T* po = out.data<T>();
    parallel_for(x.size(0), row_grain(hidden), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        row(px + r * xs, pw, pb, static_cast<float>(eps), hidden, po + r * os);
    });
  });
}

FD_EXPORT(layer_norm)

}  // namespace fd

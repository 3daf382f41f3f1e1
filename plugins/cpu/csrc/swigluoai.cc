#include "fd/math.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

// Even columns and odd columns of n < 17 pairs.
template <typename T>
void split_pairs(const T* x, int n, vf* even, vf* odd) {
  float v[2 * kLanes];
  for (int i = 0; i < 2 * n; ++i) v[i] = to_float(x[i]);
  for (int i = 0; i < n; ++i) (*even)[i] = v[2 * i], (*odd)[i] = v[2 * i + 1];
}

struct Interleaved {
  float alpha, limit;
  vf operator()(vf gate, vf up) const {
    const vf g = detail::clamp(gate, -__builtin_inff(), limit);
    const vf u = detail::clamp(up, -limit, limit);
    return (u + 1.0f) * g * vsigmoid(alpha * g);
  }
};

struct Halves {
  float alpha, limit;
  vf operator()(vf gate, vf up) const {
    return up * gate * vsigmoid(detail::clamp(alpha * gate, -limit, limit));
  }
};

template <typename T>
void interleaved_row(const T* x, int64_t n, T* out, Interleaved f) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int m = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    vf even{}, odd{};
    split_pairs(x + 2 * i, m, &even, &odd);
    if (m == kLanes)
      store16(out + i, f(even, odd));
    else
      store_tail(out + i, f(even, odd), m);
  }
}

void interleaved_op(const Tensor& x, const Tensor& out, Interleaved f) {
  const int64_t xs = x.stride(0), os = out.stride(0), n = out.size(1);
  dispatch_float("swigluoai", "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* px = x.data<T>();
    T* po = out.data<T>();
    parallel_for(x.size(0), row_grain(2 * n), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) interleaved_row(px + r * xs, n, po + r * os, f);
    });
  });
}

}  // namespace

void swigluoai(Tensor x, double alpha, double limit, std::string_view type, Tensor out) {
  if (!(limit >= 0)) fail("ValueError", "swigluoai.limit: want >= 0, have ", limit);
  Check{"swigluoai", "x", x}.rank(2).inner_contiguous();
  if (x.size(1) % 2 != 0)
    fail("ValueError", "swigluoai.x: want an even last dimension, have ", shape_text(x));
  Check{"swigluoai", "out", out}.rank(2).dim(0, x.size(0)).dim(1, x.size(1) / 2);
  Check{"swigluoai", "out", out}.same_dtype(x).inner_contiguous();
  const float a = static_cast<float>(alpha), l = static_cast<float>(limit);
  if (type == "interleave")
    interleaved_op(x, out, {a, l});
  else
    halves_op("swigluoai", x, out, Halves{a, l});
}

FD_EXPORT(swigluoai)

}  // namespace fd

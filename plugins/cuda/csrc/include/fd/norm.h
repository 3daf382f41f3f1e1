// Host side of the norms: argument checks, and how a row is spread over a block.
#pragma once
#include "fd/cuda.h"
#include "fd/reduce.cuh"

namespace fd {

// A norm weight: a vector of `n` elements of x's type or float32.
inline void check_weight(const char* op, const char* arg, const Tensor& weight, const Tensor& x,
                         int64_t n) {
  const Check check{op, arg, weight};
  check.rank(1).dim(0, n).contiguous();
  if (!is<float>(weight)) check.same_dtype(x);
}

inline void check_eps(const char* op, double eps) {
  if (!(eps >= 0)) fail("ValueError", op, ".eps: want >= 0, have ", eps);
}

// f(T{}, W{}) for x's element type and the weight's.
template <typename F>
void dispatch_norm(const char* op, const Tensor& x, const Tensor& weight, F&& f) {
  dispatch_float(op, "x", x, [&](auto tag) {
    using T = decltype(tag);
    if (is<float>(weight))
      f(tag, float{});
    else
      f(tag, T{});
  });
}

// `vectors` of 16 bytes per thread that hold a row in registers; 0: the row cannot be vectorised.
struct RowShape {
  int threads, vectors;
};

template <typename T>
RowShape row_shape(int64_t width, std::initializer_list<int64_t> steps,
                   std::initializer_list<const void*> pointers) {
  bool fits = width % kPack<T> == 0;
  for (const int64_t step : steps) fits = fits && step % kPack<T> == 0;
  for (const void* pointer : pointers) fits = fits && aligned16(pointer);
  const int64_t packs = (width + kPack<T> - 1) / kPack<T>;
  if (!fits || packs > 4 * 1024) return {256, 0};
  const int vectors = packs <= 64 ? 1 : packs <= 1024 ? 2 : 4;
  const int64_t threads = (packs + vectors - 1) / vectors;
  return {static_cast<int>((threads + kWarp - 1) / kWarp * kWarp), vectors};
}

// Lanes of a warp that hold `packs` vectors, one each, so that they can add up by halving.
inline int pow2_lanes(int64_t packs) {
  int lanes = 1;
  while (lanes < packs) lanes *= 2;
  return lanes;
}

}  // namespace fd

// Host side of the norms: how a row is spread over a block.
#pragma once
#include "fd/checks/norm.h"
#include "fd/cuda.h"
#include "fd/reduce.cuh"

namespace fd {

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

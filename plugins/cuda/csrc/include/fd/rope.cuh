// Rotation of pairs (a, b) by cosines and sines: a cos - b sin, b cos + a sin.
#pragma once
#include "fd/pack.cuh"

namespace fd {

struct Pair {
  float a, b;
};
__device__ __forceinline__ Pair rotated(float a, float b, float cos, float sin) {
  return {a * cos - b * sin, b * cos + a * sin};
}

// One pair of a head in place; `half` pairs, (j, j + half) or (2j, 2j + 1).
template <typename T, typename C>
__device__ __forceinline__ void rotate_pair(T* head, const C* table, int j, int half, bool neox) {
  T *pa = head + (neox ? j : 2 * j), *pb = neox ? pa + half : pa + 1;
  const Pair r =
      rotated(to_float(*pa), to_float(*pb), to_float(table[j]), to_float(table[half + j]));
  *pa = from_float<T>(r.a), *pb = from_float<T>(r.b);
}

}  // namespace fd

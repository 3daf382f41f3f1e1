// Sixteen bytes at a time: what one thread of an element-wise kernel moves.
#pragma once
#include "fd/types.h"

namespace fd {

template <typename T>
using Pack = Vec<T, kPack<T>>;

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T>*>(p);
}
template <typename T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& v) {
  *reinterpret_cast<Pack<T>*>(p) = v;
}

// N elements as floats; the address is aligned to them, up to 16 bytes.
template <int N, typename W>
struct Floats {
  float at[N];
  Floats() = default;
  __device__ __forceinline__ explicit Floats(const W* p) {
    constexpr int M = N < kPack<W> ? N : kPack<W>;
#pragma unroll
    for (int j = 0; j < N; j += M) {
      const Vec<W, M> v = *reinterpret_cast<const Vec<W, M>*>(p + j);
#pragma unroll
      for (int i = 0; i < M; ++i) at[j + i] = to_float(v[i]);
    }
  }
  __device__ __forceinline__ float operator[](int i) const { return at[i]; }
};

// N elements converted; equal types keep their bits.
template <typename W, typename T, int N>
struct Converted {
  __device__ __forceinline__ static Vec<T, N> of(const W* from) {
    const Floats<N, W> wide(from);
    Vec<T, N> v;
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = from_float<T>(wide[i]);
    return v;
  }
};
template <typename T, int N>
struct Converted<T, T, N> {
  __device__ __forceinline__ static Vec<T, N> of(const T* from) {
    return *reinterpret_cast<const Vec<T, N>*>(from);
  }
};

}  // namespace fd

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

}  // namespace fd

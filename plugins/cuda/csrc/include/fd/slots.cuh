// Lists of ids that kernels search.
#pragma once
#include "fd/types.h"

namespace fd {

struct Ids {
  const int64_t* ids;
  int64_t count;

  __device__ __forceinline__ bool has(int64_t id) const {
    for (int64_t i = 0; i < count; ++i)
      if (ids[i] == id) return true;
    return false;
  }
};

}  // namespace fd

// Index vectors on the device.
#pragma once
#include "fd/types.h"

namespace fd {

// A contiguous vector of int32 or int64 indices.
struct Ids {
  const int32_t* narrow;
  const int64_t* wide;
  int64_t count;

  __device__ __forceinline__ int64_t operator[](int64_t i) const {
    return wide != nullptr ? wide[i] : narrow[i];
  }
};

}  // namespace fd

// The e4m3fn type among the host's checks.
#pragma once
#include "fd/check.h"
#include "fd/fp8.cuh"

namespace fd {

template <>
struct DTypeOf<e4m3> {
  static constexpr uint8_t code = kDLFloat8_e4m3fn, bits = 8;
};

}  // namespace fd

// A whole tensor to float8 under one scale.
#pragma once
#include <algorithm>
#include <limits>

#include "fd/token_quant.h"

namespace fd {

inline void check_tensor_quant(const char* op, Tensor out, Tensor input, Tensor scale) {
  Check{op, "input", input}.contiguous();
  Check{op, "out", out}.same_shape(input).dtype<e4m3>("float8_e4m3fn").contiguous();
  Check{op, "scale", scale}.numel(1).dtype<float>("float32");
}

// 1 / scale, the largest float where that is infinite: zeros stay zeros.
inline float inverse(float scale) {
  return std::min(1.0f / scale, std::numeric_limits<float>::max());
}

template <typename T>
void encode_tensor(const T* from, int64_t n, float times, uint8_t* to) {
  constexpr int64_t kPart = 1 << 14;
  parallel_for((n + kPart - 1) / kPart, 1, [=](int64_t begin, int64_t end) {
    const int64_t first = begin * kPart, last = std::min(end * kPart, n);
    encode(from + first, last - first, to + first, [=](vf v) { return v * times; });
  });
}

}  // namespace fd

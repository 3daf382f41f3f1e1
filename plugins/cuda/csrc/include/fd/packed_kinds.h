// From codes and scales to the weights of packed_weights.cuh.
#pragma once
#include "fd/packed_checks.h"

namespace fd {

inline void check_int8(const char* op, Tensor codes, Tensor scales, int64_t columns,
                       int64_t depth) {
  check_int8_codes(op, codes, columns, depth);
  check_row_scales(op, scales, columns);
}

template <typename T>
Int8Weights<T> int8_weights(Tensor codes, Tensor scales, int64_t columns) {
  return {{codes.data<uint4>(), static_cast<int>(codes.size(1))}, {scales.data<float>(), columns}};
}

// Checks codes and scales; returns the group's length, 0 for one scale per output.
inline int check_int4(const char* op, Tensor codes, Tensor scales, int64_t columns, int64_t depth) {
  const int64_t window = check_int4_codes(op, codes, columns, depth);
  if (scales.ndim() == 1 && window == kInt4RowWindow) {
    check_row_scales(op, scales, columns);
    return 0;
  }
  Check{op, "scales", scales}.rank(3).dim(0, codes.size(0)).dim(1, codes.size(1));
  Check{op, "scales", scales}.dim(2, kSkinnyTile).dtype<bf16>("bfloat16").contiguous();
  return static_cast<int>(window);
}

// f(weights) for what check_int4 returned.
template <typename T, typename F>
void with_int4_weights(int group, Tensor codes, Tensor scales, int64_t columns, F&& f) {
  const int windows = static_cast<int>(codes.size(1));
  const uint4* units = codes.data<uint4>();
  if (group == 0) return f(Int4RowWeights<T>{{units, windows}, {scales.data<float>(), columns}});
  const uint32_t* pairs = scales.data<uint32_t>();
  if (group == 64) return f(Int4Weights<T, 64>{{units, windows}, pairs, columns});
  f(Int4Weights<T, 128>{{units, windows}, pairs, columns});
}

}  // namespace fd

// What the layouts of packed_weights.cuh and packed_zero.cuh demand of tensors.
#pragma once
#include "fd/linear.h"
#include "fd/packed_zero.cuh"

namespace fd {

// codes [tiles, windows, 16 * window / 2] uint8 of a weight [columns, depth]; returns the window.
inline int64_t check_int4_codes(const char* op, Tensor codes, int64_t columns, int64_t depth) {
  Check{op, "codes", codes}.rank(3).dtype<uint8_t>("uint8").contiguous();
  const int64_t window = codes.size(2) / (kSkinnyTile / 2);
  if ((window != 64 && window != 128) || codes.size(2) % (kSkinnyTile / 2) != 0)
    fail("ValueError", op, ".codes: want 512 or 1024 bytes in dimension 2, have ",
         shape_text(codes));
  Check{op, "codes", codes}.dim(0, blocks_of(columns, kSkinnyTile));
  Check{op, "codes", codes}.dim(1, blocks_of(depth, window));
  return window;
}

// codes [tiles, windows, 16 * 64] int8 of a weight [columns, depth].
inline void check_int8_codes(const char* op, Tensor codes, int64_t columns, int64_t depth) {
  Check{op, "codes", codes}.rank(3).dtype<int8_t>("int8").contiguous();
  Check{op, "codes", codes}.dim(0, blocks_of(columns, kSkinnyTile));
  Check{op, "codes", codes}.dim(1, blocks_of(depth, kInt8Window)).dim(2, kSkinnyTile * kInt8Window);
}

// Codes, and scales and zero points beside them; returns the group's length.
inline int64_t check_int4_zero(const char* op, Tensor codes, Tensor steps, int64_t columns,
                               int64_t depth) {
  const int64_t window = check_int4_codes(op, codes, columns, depth);
  Check{op, "steps", steps}.rank(3).dtype<uint8_t>("uint8").contiguous();
  Check{op, "steps", steps}.dim(0, codes.size(0)).dim(1, codes.size(1)).dim(2, kStepBytes);
  return window;
}

// f(weights) for what check_int4_zero returned.
template <typename T, typename F>
void with_int4_zero_weights(int64_t group, Tensor codes, Tensor steps, int64_t columns, F&& f) {
  const int windows = static_cast<int>(codes.size(1));
  const uint4 *units = codes.data<uint4>(), *from = steps.data<uint4>();
  if (group == 64) return f(Int4ZeroWeights<T, 64>{{units, windows}, from, columns});
  f(Int4ZeroWeights<T, 128>{{units, windows}, from, columns});
}

// A float32 scale for each of `columns`.
inline void check_row_scales(const char* op, Tensor scales, int64_t columns) {
  Check{op, "scales", scales}.rank(1).dim(0, columns).dtype<float>("float32").contiguous();
}

}  // namespace fd

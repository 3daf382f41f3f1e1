// A call of moe_expert_int8 or moe_expert_int4, and what it demands of its tensors.
#pragma once
#include "fd/expert_groups.cuh"
#include "fd/linear.h"
#include "fd/packed_linear.h"

namespace fd {

// What one call works on: x [rows, hidden]; codes [experts, 2, tiles, windows, bytes] of gate and
// up, [experts, tiles, windows, bytes] of down; scales likewise.
struct PackedCall {
  const char* op;
  Tensor x, ends, up, up_scales, down, down_scales;
  int64_t inner;
  Tensor out;

  int64_t hidden() const { return x.size(1); }
  int64_t experts() const { return up.size(0); }
  ExpertRows rows() const {
    return {ends.data<int64_t>(), static_cast<int>(experts()), x.size(0), 0, false};
  }
};

inline void check_packed_call(const PackedCall& call) {
  const char* op = call.op;
  Check{op, "x", call.x}.rank(2).contiguous();
  check_packed_input(op, call.x);
  Check{op, "out", call.out}.same_shape(call.x).same_dtype(call.x).contiguous();
  Check{op, "gate_up_codes", call.up}.rank(5).dim(1, 2).contiguous();
  Check{op, "down_codes", call.down}.rank(4).dim(0, call.experts()).contiguous();
  Check{op, "ends", call.ends}.dtype<int64_t>("int64").rank(1).dim(0, call.experts()).contiguous();
  if (call.inner <= 0 || call.inner % 8 != 0)
    fail("ValueError", op, ".intermediate: want a positive multiple of 8, have ", call.inner);
  if (call.x.size(0) > INT32_MAX)
    fail("ValueError", op, ".x: want fewer than 2^31 rows, have ", shape_text(call.x));
  same_device(op, call.x,
              {call.ends, call.up, call.up_scales, call.down, call.down_scales, call.out});
}

// Codes of matrices [columns, depth] in windows of `window` steps; bytes of a window of a tile.
template <typename C>
void check_codes(const char* op, const char* arg, Tensor codes, const char* type, int64_t columns,
                 int64_t depth, int64_t window, int64_t bytes) {
  const int n = codes.ndim();
  const Check check{op, arg, codes};
  check.dtype<C>(type).dim(n - 3, blocks_of(columns, kSkinnyTile));
  check.dim(n - 2, blocks_of(depth, window)).dim(n - 1, bytes);
}

// Scales [..., columns] behind the dimensions that say which matrix.
inline void check_row_scales(const char* op, const char* arg, Tensor scales, Tensor codes,
                             int64_t columns) {
  const int n = codes.ndim() - 3;
  const Check check{op, arg, scales};
  check.rank(n + 1).dtype<float>("float32").dim(n, columns).contiguous();
  for (int i = 0; i < n; ++i) check.dim(i, codes.size(i));
}

inline void check_int8_matrices(const char* op, const char* arg, Tensor codes,
                                const char* scale_arg, Tensor scales, int64_t columns,
                                int64_t depth) {
  check_codes<int8_t>(op, arg, codes, "int8", columns, depth, kInt8Window,
                      kSkinnyTile * kInt8Window);
  check_row_scales(op, scale_arg, scales, codes, columns);
}

inline void check_int8_call(const PackedCall& call) {
  check_packed_call(call);
  check_int8_matrices(call.op, "gate_up_codes", call.up, "gate_up_scales", call.up_scales,
                      call.inner, call.hidden());
  check_int8_matrices(call.op, "down_codes", call.down, "down_scales", call.down_scales,
                      call.hidden(), call.inner);
}

// Checks codes and scales; returns the group's length, 0 for one scale per output.
inline int check_int4_matrices(const char* op, const char* arg, Tensor codes, const char* scale_arg,
                               Tensor scales, int64_t columns, int64_t depth) {
  const int64_t window = codes.size(-1) / (kSkinnyTile / 2);
  if ((window != 64 && window != 128) || codes.size(-1) % (kSkinnyTile / 2) != 0)
    fail("ValueError", op, ".", arg, ": want 512 or 1024 bytes in the last dimension, have ",
         shape_text(codes));
  check_codes<uint8_t>(op, arg, codes, "uint8", columns, depth, window, codes.size(-1));
  if (scales.ndim() == codes.ndim() - 2 && window == kInt4RowWindow) {
    check_row_scales(op, scale_arg, scales, codes, columns);
    return 0;
  }
  const Check check{op, scale_arg, scales};
  check.rank(codes.ndim()).dtype<bf16>("bfloat16").dim(codes.ndim() - 1, kSkinnyTile).contiguous();
  for (int i = 0; i < codes.ndim() - 1; ++i) check.dim(i, codes.size(i));
  return static_cast<int>(window);
}

// The same of a call.
inline int check_int4_call(const PackedCall& call) {
  check_packed_call(call);
  const int group = check_int4_matrices(call.op, "gate_up_codes", call.up, "gate_up_scales",
                                        call.up_scales, call.inner, call.hidden());
  const int other = check_int4_matrices(call.op, "down_codes", call.down, "down_scales",
                                        call.down_scales, call.hidden(), call.inner);
  if (group != other)
    fail("ValueError", call.op, ".down_scales: want groups as gate_up_scales has, have ",
         shape_text(call.down_scales));
  return group;
}

}  // namespace fd

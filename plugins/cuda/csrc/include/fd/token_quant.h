// Host side of the group-wise quantisers.
#pragma once
#include "fd/fp8.h"
#include "fd/rowwise.h"
#include "fd/token_quant.cuh"

namespace fd {

// What the three quantisers check alike: the block, the input's type, codes like the input, and
// scales [..., columns] of the right type. Returns the number of columns of the scales.
inline int64_t check_group_quant(const char* op, Tensor input, int64_t block_size, bool power,
                                 Tensor output, Tensor scale) {
  if (block_size != kFp8Group)
    fail("ValueError", op, ".block_size: want ", kFp8Group, ", have ", block_size);
  if (!is<bf16>(input) && !is<f16>(input))
    fail("TypeError", op, ".input: want bfloat16 or float16, have ", dtype_text(input));
  Check{op, "input", input}.contiguous();
  Check{op, "output", output}.same_shape(input).dtype<e4m3>("float8_e4m3fn").contiguous();
  if (power) Check{op, "output_scale", scale}.dtype<int32_t>("int32");
  if (!power) Check{op, "output_scale", scale}.dtype<float>("float32");
  const int64_t groups = (input.size(-1) + kFp8Group - 1) / kFp8Group;
  return power ? (groups + 3) / 4 : groups;
}

inline void check_whole_groups(const char* op, Tensor input) {
  if (input.size(-1) % kFp8Group != 0)
    fail("ValueError", op, ".input: want columns in groups of 128, have ", shape_text(input));
}

template <typename F>
void dispatch_half(const Tensor& t, F&& f) {
  if (is<bf16>(t)) return f(bf16{});
  f(f16{});
}

// `rows` rows of scales in experts of `capacity`.
template <typename T>
GroupQuant<T> group_quant(Tensor input, Tensor output, Tensor scale, int64_t rows, int64_t capacity,
                          bool power) {
  const int64_t columns = input.size(-1), groups = (columns + kFp8Group - 1) / kFp8Group;
  GroupQuant<T> all{};
  all.from = input.data<T>(), all.to = output.data<e4m3>(), all.scales = scale.data<char>();
  all.row_step = scale.stride(-2), all.column_step = scale.stride(-1);
  all.expert_step = scale.ndim() == 3 ? scale.stride(0) : 0;
  all.rows = rows, all.coded = columns == 0 ? 0 : input.numel() / columns;
  all.capacity = capacity, all.columns = columns;
  all.groups = static_cast<int>(groups), all.power = power;
  return all;
}

template <typename T>
void token_quant_launch(const Launch& on, const GroupQuant<T>& all) {
  const bool packs = packable<T>(all.columns, {}, {all.from}) &&
                     reinterpret_cast<uintptr_t>(all.to) % kPack<T> == 0;
  const int lanes = packs ? kFp8Group / kPack<T> : kWarp;
  const dim3 grid((all.rows * all.groups * lanes + 127) / 128), block(128);
  if (packs)
    run_overlapped(on, token_quant_groups<T, kPack<T>>, grid, block, 0, all, lanes);
  else
    run_overlapped(on, token_quant_groups<T, 1>, grid, block, 0, all, lanes);
}

}  // namespace fd

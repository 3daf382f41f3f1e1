// Rows of 16-bit floats to float8 with a scale per group of 128 columns: the kernel of
// per_token_quant, per_token_quant_padding and masked_per_token_quant.
#pragma once
#include "fd/fp8_rows.cuh"

namespace fd {

constexpr int kFp8Group = 128;
constexpr float kFp8Floor = 1e-10f;

// `rows` rows of scales in experts of `capacity`; the first `coded` of them have codes. Strides of
// scales in elements of 4 bytes: float32 or, with `power`, four exponents to a word.
template <typename T>
struct GroupQuant {
  const T* from;
  e4m3* to;
  char* scales;
  int64_t expert_step, row_step, column_step;
  const int32_t* counts;  // valid rows of every expert; null: the coded ones
  int64_t rows, coded, capacity, columns;
  int groups;
  bool power;

  __device__ __forceinline__ bool valid(int64_t row) const {
    if (row >= coded) return false;
    return counts == nullptr || row % capacity < counts[row / capacity];
  }
  __device__ __forceinline__ char* word(int64_t row, int column) const {
    return scales +
           4 * (row / capacity * expert_step + row % capacity * row_step + column * column_step);
  }
  // Of the last group also the bytes that no group fills.
  __device__ __forceinline__ void put(int64_t row, int g, float scale, uint32_t exponent) const {
    if (!power) {
      *reinterpret_cast<float*>(word(row, g)) = scale;
      return;
    }
    char* bytes = word(row, g / 4);
    bytes[g % 4] = static_cast<char>(exponent);
    for (int b = g % 4 + 1; g + 1 == groups && b < 4; ++b) bytes[b] = 0;
  }
};

// The biased exponent of the smallest power of two that is not below x.
__device__ __forceinline__ uint32_t exponent_above(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1 : 0);
}

// A group over `lanes` lanes, N elements at a time.
template <typename T, int N>
__global__ void token_quant_groups(GroupQuant<T> all, int lanes) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes, g = static_cast<int>(i % all.groups);
  const int64_t row = i / all.groups, at = int64_t{g} * kFp8Group;
  const int64_t n = min(int64_t{kFp8Group}, all.columns - at);
  const bool valid = row < all.rows && all.valid(row);
  const T* x = all.from + row * all.columns + at;
  e4m3* to = all.to + row * all.columns + at;
  // Magnitudes are not negative: their bits order like the numbers.
  const float mine = valid ? largest_of<T, N>(x, n, lane, lanes) : 0.f;
  const float most = __uint_as_float(group_max(__float_as_uint(mine), lanes));
  if (row >= all.rows) return;
  const float amax = fmaxf(most, kFp8Floor), scale = __fdiv_rn(amax, kE4m3Largest);
  const uint32_t exponent = exponent_above(fmaxf(scale, kFp8Floor));
  if (lane == 0) all.put(row, g, valid ? scale : 0.f, valid ? exponent : 0);
  if (row >= all.coded) return;
  const float power = __uint_as_float(exponent << 23);
  encode<T, N>(x, n, to, lane, lanes, [&](float v) {
    if (!valid) return 0.f;
    return all.power ? __fdiv_rn(v, power) : __fdiv_rn(__fmul_rn(v, kE4m3Largest), amax);
  });
}

}  // namespace fd

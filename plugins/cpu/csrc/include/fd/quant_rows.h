// Rows of activations as int8 codes, made anew in every call. Every group of k has a scale of its
// own: a single one for a row would be set by its outliers, which gated activations have.
#pragma once
#include "fd/int_dot.h"
#include "fd/quantise.h"

namespace fd {
namespace gemm {

// Activations that share a scale, where the weights have no groups.
constexpr int64_t kRowGroup = 128;

// `codes` [rows][stride], zero beyond the depth. `scales` [rows]. `sums` [rows][groups]: the codes
// of each group added up.
struct QuantRows {
  Code* codes;
  float* scales;
  int32_t* sums;
  int64_t stride, groups, group;

  const Code* at(int64_t row, int64_t group_index) const {
    return codes + row * stride + group_index * group;
  }
};

// One group: codes of `n` <= group floats, the rest zero; returns the codes' sum.
template <typename T>
int32_t quantise_group(const T* x, int64_t n, int64_t group, float of_floats, Code* to) {
  typedef Code Codes __attribute__((vector_size(kLanes * sizeof(Code))));
  vi sum{};
  for (int64_t k = 0; k < group; k += kLanes) {
    const int left = static_cast<int>(std::clamp<int64_t>(n - k, 0, kLanes));
    const vf lanes = left == kLanes ? load16(x + k) : load_tail(x + k, left);
    const vi q = codes16(lanes, of_floats, -127, 127);
    const Codes narrow = __builtin_convertvector(q, Codes);
    std::memcpy(to + k, &narrow, sizeof(narrow));
    sum += q;
  }
  return total16(sum);
}

template <typename T>
void quantise_row(const T* x, int64_t depth, const QuantRows& to, int64_t row) {
  for (int64_t g = 0; g < to.groups; ++g) {
    const T* from = x + g * to.group;
    const int64_t n = std::min(to.group, depth - g * to.group), at = row * to.groups + g;
    const Scale scale(absmax(from, n), 127.0f);
    to.scales[at] = scale.of_codes;
    to.sums[at] = quantise_group(from, n, to.group, scale.of_floats,
                                 to.codes + row * to.stride + g * to.group);
  }
}

// In scratch memory of the calling thread. `group`: a multiple of 16.
inline QuantRows quant_rows(int64_t rows, int64_t depth, int64_t group) {
  const int64_t groups = (depth + group - 1) / group;
  const int64_t stride = groups * group + 64 / static_cast<int64_t>(sizeof(Code));
  const int64_t code_floats = (rows * stride * static_cast<int64_t>(sizeof(Code)) + 63) / 64 * 16;
  float* space = scratch<0>(code_floats + 2 * rows * groups);
  return {reinterpret_cast<Code*>(space),
          space + code_floats,
          reinterpret_cast<int32_t*>(space + code_floats + rows * groups),
          stride,
          groups,
          group};
}

template <typename T>
QuantRows quantise_rows(const T* x, int64_t x_stride, int64_t rows, int64_t depth, int64_t group) {
  const QuantRows to = quant_rows(rows, depth, group);
  parallel_for(rows, 1 + 16384 / (depth + 1), [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) quantise_row(x + r * x_stride, depth, to, r);
  });
  return to;
}

}  // namespace gemm
}  // namespace fd

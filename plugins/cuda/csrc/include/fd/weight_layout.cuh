// The order in which weight_quantize stores codes (architectures 75 to 90).
#pragma once
#include "fd/types.h"

namespace fd {

// Codes of a weight [depth, columns], stored with `bias` added; `group` steps of k share a scale.
struct WeightLayout {
  bool int4;
  int64_t depth, columns, group;
  int limit, bias;

  __host__ __device__ int64_t groups() const { return (depth + group - 1) / group; }

  // Byte (int8) or nibble (int4, the low one first) of a code.
  __host__ __device__ int64_t place(int64_t k, int64_t n) const {
    if (int4) {
      const int64_t kk = k / 32 * 32 + 4 * (k % 8) + k % 32 / 8;
      return n / 4 * 4 * depth + kk / 64 * 256 + n % 4 * 64 + kk % 64;
    }
    const int64_t pair = k % 16, kk = k - pair + (pair < 8 ? 2 * pair : 2 * (pair - 8) + 1);
    return n / 2 * 2 * depth + kk / 64 * 128 + n % 2 * 64 + kk % 64;
  }
  __device__ int get(const uint8_t* stored, int64_t k, int64_t n) const {
    const int64_t at = place(k, n);
    return (int4 ? (stored[at / 2] >> (at % 2 * 4)) & 15 : stored[at]) - bias;
  }
  // Index of the scale of a code.
  __device__ int64_t scale(int64_t k, int64_t n) const { return k / group * columns + n; }
};

}  // namespace fd

// The order in which weight_quantize stores codes (architectures 75 to 90), and its arguments'
// checks.
#pragma once
#include <string_view>

#include "fd/check.h"

namespace fd {

// Codes of a weight [depth, columns], stored with `bias` added; `group` steps of k share a scale.
struct WeightLayout {
  bool int4;
  int64_t depth, columns, group;
  int limit, bias;

  int64_t groups() const { return group > 0 ? (depth + group - 1) / group : 0; }

  // Byte (int8) or nibble (int4) of a code.
  int64_t place(int64_t k, int64_t n) const {
    if (int4) {
      const int64_t kk = k / 32 * 32 + 4 * (k % 8) + k % 32 / 8;
      return n / 4 * 4 * depth + kk / 64 * 256 + n % 4 * 64 + kk % 64;
    }
    const int64_t pair = k % 16, kk = k - pair + (pair < 8 ? 2 * pair : 2 * (pair - 8) + 1);
    return n / 2 * 2 * depth + kk / 64 * 128 + n % 2 * 64 + kk % 64;
  }
  int get(const uint8_t* stored, int64_t k, int64_t n) const { return at(stored, place(k, n)); }
  int at(const uint8_t* stored, int64_t at) const {
    return (int4 ? (stored[at / 2] >> (at % 2 * 4)) & 15 : stored[at]) - bias;
  }
  void put(uint8_t* stored, int64_t k, int64_t n, int code) const {
    const int64_t at = place(k, n);
    if (!int4) {
      stored[at] = static_cast<uint8_t>(code + bias);
      return;
    }
    const int shift = at % 2 * 4;
    stored[at / 2] =
        static_cast<uint8_t>((stored[at / 2] & ~(15 << shift)) | ((code + bias) << shift));
  }
  // Index of the scale of a code.
  int64_t scale(int64_t k, int64_t n) const { return k / group * columns + n; }

  void check(const char* op, const char* code_name, Tensor codes, const char* scale_name,
             Tensor scales, bool grouped) const {
    Check{op, code_name, codes}.rank(2).dtype<int8_t>("int8").contiguous();
    Check{op, code_name, codes}.dim(0, int4 ? columns / 2 : columns).dim(1, depth);
    Check{op, scale_name, scales}.rank(grouped ? 2 : 1).dim(-1, columns).contiguous();
    if (grouped) Check{op, scale_name, scales}.dim(0, groups());
  }
};

inline WeightLayout weight_layout(const char* op, std::string_view algo, int64_t arch,
                                  int64_t group_size, int64_t depth, int64_t columns) {
  const bool int4 = algo == "weight_only_int4";
  if (!int4 && algo != "weight_only_int8")
    fail("ValueError", op, ".algo: want one of weight_only_int8, weight_only_int4, have ", algo);
  if (arch != 0 && arch != 75 && arch != 80 && arch != 86 && arch != 89 && arch != 90)
    fail("ValueError", op, ".arch: want one of 0, 75, 80, 86, 89, 90, have ", arch);
  if (group_size != -1 && group_size != 64 && group_size != 128)
    fail("ValueError", op, ".group_size: want one of -1, 64, 128, have ", group_size);
  if (depth % 64 != 0 || columns % 16 != 0)
    fail("ValueError", op, ": want K a multiple of 64 and N of 16, have K ", depth, ", N ",
         columns);
  const int64_t group = group_size > 0 ? group_size : depth > 0 ? depth : 1;
  return {int4, depth, columns, group, int4 ? 7 : 127, int4 ? 8 : 128};
}

}  // namespace fd

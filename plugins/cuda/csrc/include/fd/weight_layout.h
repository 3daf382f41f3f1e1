// Checks of the ops over weight_quantize's codes.
#pragma once
#include <string_view>

#include "fd/cuda.h"
#include "fd/weight_layout.cuh"

namespace fd {

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

inline void check_codes(const WeightLayout& plan, const char* op, const char* code_name,
                        Tensor codes, const char* scale_name, Tensor scales, bool grouped) {
  Check{op, code_name, codes}.rank(2).dtype<int8_t>("int8").contiguous();
  Check{op, code_name, codes}.dim(0, plan.int4 ? plan.columns / 2 : plan.columns);
  Check{op, code_name, codes}.dim(1, plan.depth);
  Check{op, scale_name, scales}.rank(grouped ? 2 : 1).dim(-1, plan.columns).contiguous();
  if (grouped) Check{op, scale_name, scales}.dim(0, plan.groups());
}

}  // namespace fd

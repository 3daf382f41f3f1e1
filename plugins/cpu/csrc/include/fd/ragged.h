// Lists of token ids per row: offsets [n + 1] int32 into ids [m] int64.
#pragma once
#include "fd/check.h"

namespace fd {

inline void check_ragged(const char* op, Tensor logits, Tensor offsets, Tensor ids) {
  Check{op, "logits", logits}.rank(2).inner_contiguous();
  Check{op, "offsets", offsets}.rank(1).dim(0, logits.size(0) + 1).dtype<int32_t>("int32");
  Check{op, "offsets", offsets}.contiguous();
  Check{op, "ids", ids}.rank(1).dtype<int64_t>("int64").contiguous();
  const int32_t* o = offsets.data<int32_t>();
  int64_t before = 0;
  for (int64_t r = 0; r < offsets.numel(); ++r) {
    if (o[r] < before || o[r] > ids.numel())
      fail("ValueError", op, ".offsets: want ascending values in [0, ", ids.numel(), "], have ",
           o[r], " at ", r);
    before = o[r];
  }
}

}  // namespace fd

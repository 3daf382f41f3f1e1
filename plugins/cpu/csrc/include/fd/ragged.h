// Lists of token ids per row: offsets [n + 1] int32 into ids [m] int64.
#pragma once
#include "fd/checks/logits.h"

namespace fd {

inline void check_lists(const char* op, Tensor logits, Tensor offsets, Tensor ids) {
  check_ragged(op, logits, offsets, ids);
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

// Host side that the kernels over quantised caches share.
#pragma once
#include "fd/attention.h"

namespace fd {

// Whether 16 keys of a page are one run of bytes that starts at a multiple of 16.
inline bool code_runs(const AttentionArgs& a) {
  const auto fits = [&](const void* pool, int64_t block, int64_t slot, int64_t head) {
    return aligned16(pool) && slot == a.dim + kScaleBytes && block % 16 == 0 && head % 16 == 0;
  };
  return a.block_size % 16 == 0 && fits(a.key, a.key_block, a.key_slot, a.key_head) &&
         fits(a.value, a.value_block, a.value_slot, a.value_head);
}

}  // namespace fd

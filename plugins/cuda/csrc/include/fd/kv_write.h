// Host side of writes into the paged cache.
#pragma once
#include "fd/ids.h"
#include "fd/kv_write.cuh"

namespace fd {

inline CachePool cache_pool(const Tensor& t) {
  return {t.size(0), t.size(1), t.stride(0), t.stride(1), t.stride(2)};
}

// slot_mapping [tokens] int64; with FD_CUDA_BLOCKING=1 a slot beyond the pool is refused.
inline Ids slots_of(const char* op, const Tensor& slot_mapping, int64_t tokens) {
  const Check check{op, "slot_mapping", slot_mapping};
  check.dtype<int64_t>("int64").rank(1).dim(0, tokens).contiguous();
  return ids_of(op, "slot_mapping", slot_mapping);
}

inline void check_slots(const Launch& on, const Ids& slots, int64_t below) {
  if (!reads_data(on)) return;
  const std::vector<int64_t> all = host_ids(on, slots);
  for (size_t t = 0; t < all.size(); ++t)
    if (all[t] >= below)
      fail("ValueError", on.op, ".slot_mapping: token ", t, ": want a slot below ", below,
           ", have ", all[t]);
}

}  // namespace fd

// Lists of block pairs (source, destination) for the cache copies.
#pragma once
#include <unordered_set>

#include "fd/ids.h"

namespace fd {

struct BlockPairs {
  Ids src, dst;
  int64_t count;
};

// Equal lengths, ids within the caches, no destination twice.
inline BlockPairs block_pairs(const char* op, const Tensor& src_ids, int64_t src_blocks,
                              const Tensor& dst_ids, int64_t dst_blocks) {
  Check{op, "src_block_ids", src_ids}.rank(1).dtype<int64_t>("int64");
  Check{op, "dst_block_ids", dst_ids}.same_shape(src_ids).dtype<int64_t>("int64");
  const Ids src = ids_of(op, "src_block_ids", src_ids), dst = ids_of(op, "dst_block_ids", dst_ids);
  check_range(op, "src_block_ids", src, 0, src_blocks);
  check_range(op, "dst_block_ids", dst, 0, dst_blocks);
  std::unordered_set<int64_t> seen;
  for (int64_t i = 0; i < dst.count; ++i)
    if (!seen.insert(dst[i]).second)
      fail("ValueError", op, ".dst_block_ids: want each block once, have ", dst[i],
           " again at position ", i);
  return {src, dst, src.count};
}

}  // namespace fd

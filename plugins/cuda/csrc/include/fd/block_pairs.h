// Lists of block pairs (source, destination) for the cache copies.
#pragma once
#include <unordered_set>

#include "fd/ids.h"

namespace fd {

struct BlockPairs {
  Ids src, dst;
};

inline BlockPairs block_pairs(const char* op, const Tensor& src_ids, const Tensor& dst_ids) {
  Check{op, "src_block_ids", src_ids}.rank(1).dtype<int64_t>("int64");
  Check{op, "dst_block_ids", dst_ids}.same_shape(src_ids).dtype<int64_t>("int64");
  return {ids_of(op, "src_block_ids", src_ids), ids_of(op, "dst_block_ids", dst_ids)};
}

// With FD_CUDA_BLOCKING=1: ids within the caches, no destination twice and, with `chains` false, no
// block that is source and destination.
inline void check_pairs(const Launch& on, const BlockPairs& pairs, int64_t src_blocks,
                        int64_t dst_blocks, bool chains) {
  if (!reads_data(on)) return;
  check_range(on, "src_block_ids", pairs.src, 0, src_blocks);
  check_range(on, "dst_block_ids", pairs.dst, 0, dst_blocks);
  std::unordered_set<int64_t> written;
  for (const int64_t id : host_ids(on, pairs.dst))
    if (!written.insert(id).second)
      fail("ValueError", on.op, ".dst_block_ids: want each block once, have ", id, " again");
  if (chains) return;
  for (const int64_t id : host_ids(on, pairs.src))
    if (written.count(id) != 0)
      fail("ValueError", on.op, ".src_block_ids: want no block that is also a destination, have ",
           id);
}

}  // namespace fd

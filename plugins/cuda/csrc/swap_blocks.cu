#include "fd/ids.cuh"
#include "fd/rowmove.cuh"

namespace fd {

// A pair that leaves its cache stays.
struct SwapBlocks {
  ByteRows from, to;
  Ids src, dst;

  __device__ RowMove operator()(int64_t i) const {
    const int64_t a = src[i], b = dst[i];
    if (a < 0 || a >= from.count || b < 0 || b >= to.count) return kStay;
    return {to.row(b), from.row(a), 0};
  }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/block_pairs.h"
#include "fd/rowmove.h"

namespace fd {

inline bool swap_blocks_overlap(const ByteRows& a, const ByteRows& b) {
  if (a.count == 0 || b.count == 0) return false;
  return a.base < b.row(b.count - 1) + b.bytes && b.base < a.row(a.count - 1) + a.bytes;
}

void swap_blocks(Tensor src, Tensor dst, Tensor src_block_ids, Tensor dst_block_ids) {
  const char* op = "swap_blocks";
  const ByteRows from = byte_rows(op, "src", src);
  Check{op, "dst", dst}.rank(src.ndim()).same_dtype(src);
  for (int i = 1; i < src.ndim(); ++i) Check{op, "dst", dst}.dim(i, src.size(i));
  const ByteRows to = byte_rows(op, "dst", dst);
  if (swap_blocks_overlap(from, to))
    fail("ValueError", op, ".dst: want memory apart from src; use copy_blocks within a cache");
  const BlockPairs pairs = block_pairs(op, src_block_ids, dst_block_ids);
  same_device(op, src, {dst, src_block_ids, dst_block_ids});
  const Launch on = launch_on(op, src);
  check_pairs(on, pairs, from.count, to.count, true);
  move_all(on, SwapBlocks{from, to, pairs.src, pairs.dst}, pairs.src.count, to.bytes, {from, to});
}
FD_EXPORT(swap_blocks)

}  // namespace fd
#endif

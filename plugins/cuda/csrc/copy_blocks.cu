#include "fd/ids.cuh"
#include "fd/rowmove.cuh"

namespace fd {

// Pair i of every outer index; a pair that leaves the cache stays.
struct CopyBlocks {
  ByteRows cache;
  Ids src, dst;
  int64_t blocks;

  __device__ RowMove operator()(int64_t i) const {
    const int64_t pair = i % src.count, outer = i / src.count * blocks;
    const int64_t from = src[pair], to = dst[pair];
    if (from < 0 || from >= blocks || to < 0 || to >= blocks) return kStay;
    return {cache.row(outer + to), cache.row(outer + from), 0};
  }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/block_pairs.h"
#include "fd/rowmove.h"

namespace fd {

// The cache as outer * blocks rows.
inline ByteRows copy_blocks_rows(Tensor cache, int block_dim) {
  int64_t outer = 1, bytes = item_bytes(cache);
  for (int i = 0; i < block_dim; ++i) outer *= cache.size(i);
  for (int i = block_dim + 1; i < cache.ndim(); ++i) bytes *= cache.size(i);
  return {cache.data<char>(), outer * cache.size(block_dim), bytes, bytes};
}

void copy_blocks(Tensor cache, Tensor src_block_ids, Tensor dst_block_ids, int64_t block_dim) {
  const char* op = "copy_blocks";
  Check{op, "cache", cache}.contiguous();
  if (block_dim < 0 || block_dim >= cache.ndim())
    fail("ValueError", op, ".block_dim: want a dimension of cache ", shape_text(cache), ", have ",
         block_dim);
  const BlockPairs pairs = block_pairs(op, src_block_ids, dst_block_ids);
  const int64_t blocks = cache.size(static_cast<int>(block_dim));
  same_device(op, cache, {src_block_ids, dst_block_ids});
  const Launch on = launch_on(op, cache);
  check_pairs(on, pairs, blocks, blocks, false);
  const ByteRows rows = copy_blocks_rows(cache, static_cast<int>(block_dim));
  const int64_t outer = blocks == 0 ? 0 : rows.count / blocks;
  move_all(on, CopyBlocks{rows, pairs.src, pairs.dst, blocks}, outer * pairs.src.count, rows.bytes,
           {rows});
}
FD_EXPORT(copy_blocks)

}  // namespace fd
#endif

#include "fd/blocks.h"
#include "fd/parallel.h"
#include "fd/rowcopy.h"

namespace fd {
namespace {

// A chain a -> b, b -> c depends on the order of its copies.
void refuse_chains(const BlockPairs& pairs) {
  std::unordered_set<int64_t> written;
  for (int64_t i = 0; i < pairs.count; ++i) written.insert(pairs.dst[i]);
  for (int64_t i = 0; i < pairs.count; ++i)
    if (written.count(pairs.src[i]) != 0)
      fail("ValueError",
           "copy_blocks.src_block_ids: want no block that is also a destination, have ",
           pairs.src[i], " at position ", i);
}

}  // namespace

void copy_blocks(Tensor cache, Tensor src_block_ids, Tensor dst_block_ids, int64_t block_dim) {
  Check{"copy_blocks", "cache", cache}.contiguous();
  if (block_dim < 0 || block_dim >= cache.ndim())
    fail("ValueError", "copy_blocks.block_dim: want a dimension of cache ", shape_text(cache),
         ", have ", block_dim);
  const int64_t blocks = cache.size(static_cast<int>(block_dim));
  const BlockPairs pairs = block_pairs("copy_blocks", src_block_ids, blocks, dst_block_ids, blocks);
  refuse_chains(pairs);
  int64_t outer = 1, bytes = item_bytes(cache);
  for (int i = 0; i < block_dim; ++i) outer *= cache.size(i);
  for (int i = static_cast<int>(block_dim) + 1; i < cache.ndim(); ++i) bytes *= cache.size(i);
  const ByteRows rows{cache.data<char>(), outer * blocks, bytes, bytes};
  parallel_for(outer * pairs.count, 1 + 65536 / (bytes + 1), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / pairs.count * blocks, pair = i % pairs.count;
      rows.copy_from(first + pairs.dst[pair], rows, first + pairs.src[pair]);
    }
  });
}

FD_EXPORT(copy_blocks)

}  // namespace fd

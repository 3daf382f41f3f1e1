#include "fd/blocks.h"
#include "fd/parallel.h"
#include "fd/rowcopy.h"

namespace fd {
namespace {

bool overlap(const ByteRows& a, const ByteRows& b) {
  if (a.count == 0 || b.count == 0) return false;
  return a.base < b.row(b.count - 1) + b.bytes && b.base < a.row(a.count - 1) + a.bytes;
}

}  // namespace

void swap_blocks(Tensor src, Tensor dst, Tensor src_block_ids, Tensor dst_block_ids) {
  const ByteRows from = byte_rows("swap_blocks", "src", src);
  Check{"swap_blocks", "dst", dst}.rank(src.ndim()).same_dtype(src);
  for (int i = 1; i < src.ndim(); ++i) Check{"swap_blocks", "dst", dst}.dim(i, src.size(i));
  const ByteRows to = byte_rows("swap_blocks", "dst", dst);
  if (overlap(from, to))
    fail("ValueError",
         "swap_blocks.dst: want memory apart from src; use copy_blocks within a cache");
  const BlockPairs pairs =
      block_pairs("swap_blocks", src_block_ids, from.count, dst_block_ids, to.count);
  parallel_for(pairs.count, 1 + 65536 / (to.bytes + 1), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to.copy_from(pairs.dst[i], from, pairs.src[i]);
  });
}

FD_EXPORT(swap_blocks)

}  // namespace fd

#include <algorithm>
#include <limits>
#include <vector>

#include "fd/check.h"

namespace fd {
namespace {

const char* const kOp = "tritonmoe_preprocess";

template <typename Id>
std::vector<int64_t> counts(const Id* ids, int64_t n, int64_t experts) {
  std::vector<int64_t> bucket(static_cast<size_t>(experts + 1));  // experts are the caller's number
  for (int64_t i = 0; i < n; ++i) {
    if (ids[i] < -1 || ids[i] >= experts)
      fail("ValueError", kOp, ".topk_ids: want -1 .. ", experts - 1, ", have ", ids[i], " at ", i);
    ++bucket[static_cast<size_t>(ids[i] + 1)];
  }
  return bucket;
}

struct Outputs {
  int32_t *sorted, *experts, *total;
  int64_t capacity, blocks;
};

template <typename Id>
void group(const Id* ids, int64_t n, int64_t experts, int64_t block, const Outputs& out) {
  std::vector<int64_t> bucket = counts(ids, n, experts);
  std::fill_n(out.sorted, out.capacity, static_cast<int32_t>(n));
  std::fill_n(out.experts, out.blocks, -1);
  int64_t at = 0;
  for (int64_t e = 0; e <= experts; ++e) {
    const int64_t blocks = (bucket[static_cast<size_t>(e)] + block - 1) / block;
    std::fill_n(out.experts + at / block, blocks, static_cast<int32_t>(e - 1));
    bucket[static_cast<size_t>(e)] = at;
    at += blocks * block;
  }
  *out.total = static_cast<int32_t>(at);
  for (int64_t i = 0; i < n; ++i)
    out.sorted[bucket[static_cast<size_t>(ids[i] + 1)]++] = static_cast<int32_t>(i);
}

}  // namespace

void tritonmoe_preprocess(Tensor topk_ids, int64_t num_experts, int64_t block, Tensor sorted_ids,
                          Tensor experts_ids, Tensor num_tokens_post_pad) {
  const int64_t n = topk_ids.numel();
  Check{kOp, "topk_ids", topk_ids}.contiguous();
  if (num_experts < 1 || num_experts > std::numeric_limits<int32_t>::max())
    fail("ValueError", kOp, ".num_experts: want 1 .. 2^31 - 1, have ", num_experts);
  if (block < 1 || block > std::numeric_limits<int32_t>::max() / (num_experts + 1))
    fail("ValueError", kOp,
         ".GEMM_BLOCK_SIZE_M: want >= 1 and its multiple with num_experts + 1 "
         "below 2^31, have ",
         block);
  const int64_t capacity = n < num_experts + 1 ? n * block : n + (num_experts + 1) * (block - 1);
  if (capacity > std::numeric_limits<int32_t>::max())
    fail("ValueError", kOp, ".topk_ids: want at most 2^31 - 1 entries after padding, have ",
         capacity);
  const int64_t blocks = (capacity + block - 1) / block;
  Check{kOp, "sorted_ids", sorted_ids}
      .dtype<int32_t>("int32")
      .rank(1)
      .dim(0, capacity)
      .contiguous();
  Check{kOp, "experts_ids", experts_ids}
      .dtype<int32_t>("int32")
      .rank(1)
      .dim(0, blocks)
      .contiguous();
  Check{kOp, "num_tokens_post_pad", num_tokens_post_pad}.dtype<int32_t>("int32").rank(1).dim(0, 1);
  const Outputs out{sorted_ids.data<int32_t>(), experts_ids.data<int32_t>(),
                    num_tokens_post_pad.data<int32_t>(), capacity, blocks};
  if (is<int64_t>(topk_ids)) return group(topk_ids.data<int64_t>(), n, num_experts, block, out);
  Check{kOp, "topk_ids", topk_ids}.dtype<int32_t>("int64 or int32");
  group(topk_ids.data<int32_t>(), n, num_experts, block, out);
}
FD_EXPORT(tritonmoe_preprocess)

}  // namespace fd

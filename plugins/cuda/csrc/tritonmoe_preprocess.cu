#include "fd/slot_sort.cuh"

namespace fd {

struct PreprocessSink {
  int32_t *sorted, *experts, *total;
  int64_t blocks;

  __device__ __forceinline__ void place(int64_t slot, int, int64_t at) const {
    sorted[at] = static_cast<int32_t>(slot);
  }
  // The group of each block of `padding` slots, -1 beyond the last.
  __device__ void finish(const SlotSort& sort) const {
    const int64_t used = sort.begins[sort.groups];
    for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) {
      int low = 0, high = sort.groups;  // the last group that begins at or before the block
      while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        (sort.begins[middle] <= b * sort.padding ? low : high) = middle;
      }
      experts[b] = b * sort.padding < used ? low - 1 : -1;
    }
    if (threadIdx.x == 0) *total = static_cast<int32_t>(used);
  }
};

__global__ void tritonmoe_preprocess_fill(int32_t* sorted, int64_t capacity, int32_t value) {
  wait_for_inputs();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < capacity) sorted[i] = value;
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include <limits>

#include "fd/slot_sort.h"

namespace fd {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

// Elements of sorted_ids.
inline int64_t preprocess_capacity(const char* op, int64_t n, int64_t experts, int64_t block) {
  if (experts < 1 || experts > kInt32Max)
    fail("ValueError", op, ".num_experts: want 1 .. 2^31 - 1, have ", experts);
  if (block < 1 || block > kInt32Max / (experts + 1))
    fail("ValueError", op,
         ".GEMM_BLOCK_SIZE_M: want >= 1 and its multiple with num_experts + 1 below 2^31, have ",
         block);
  const int64_t capacity = n < experts + 1 ? n * block : n + (experts + 1) * (block - 1);
  if (capacity > kInt32Max)
    fail("ValueError", op, ".topk_ids: want at most 2^31 - 1 entries after padding, have ",
         capacity);
  return capacity;
}

void tritonmoe_preprocess(Tensor topk_ids, int64_t num_experts, int64_t block, Tensor sorted_ids,
                          Tensor experts_ids, Tensor num_tokens_post_pad) {
  const char* op = "tritonmoe_preprocess";
  const int64_t n = topk_ids.numel();
  Check{op, "topk_ids", topk_ids}.contiguous();
  if (!is<int64_t>(topk_ids)) Check{op, "topk_ids", topk_ids}.dtype<int32_t>("int64 or int32");
  const int64_t capacity = preprocess_capacity(op, n, num_experts, block);
  const int64_t blocks = (capacity + block - 1) / block;
  Check{op, "sorted_ids", sorted_ids}.dtype<int32_t>("int32").rank(1).dim(0, capacity).contiguous();
  Check{op, "experts_ids", experts_ids}.dtype<int32_t>("int32").rank(1).dim(0, blocks).contiguous();
  Check{op, "num_tokens_post_pad", num_tokens_post_pad}.dtype<int32_t>("int32").rank(1).dim(0, 1);
  same_device(op, topk_ids, {sorted_ids, experts_ids, num_tokens_post_pad});
  const Launch on = launch_on(op, topk_ids);
  run_overlapped(on, tritonmoe_preprocess_fill, dim3(static_cast<unsigned>((capacity + 255) / 256)),
                 dim3(256), 0, sorted_ids.data<int32_t>(), capacity, static_cast<int32_t>(n));
  SlotSort sort{};
  sort.ids = topk_ids.data<char>(), sort.wide = is<int64_t>(topk_ids), sort.lowest = -1;
  sort.n = n, sort.groups = static_cast<int>(num_experts + 1), sort.padding = block;
  run_slot_sort(on, sort,
                PreprocessSink{sorted_ids.data<int32_t>(), experts_ids.data<int32_t>(),
                               num_tokens_post_pad.data<int32_t>(), blocks});
}
FD_EXPORT(tritonmoe_preprocess)

}  // namespace fd
#endif

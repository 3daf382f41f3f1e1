// Where a token's keys and values go in the paged cache.
#pragma once
#include "fd/types.h"

namespace fd {

// One pool [blocks, block_size, heads, dim] at any strides (in elements) but the last, which is 1.
struct CachePool {
  int64_t blocks, size, block_stride, token_stride, head_stride;

  __device__ __forceinline__ bool has(int64_t slot) const {
    return slot >= 0 && slot < blocks * size;
  }
  __device__ __forceinline__ int64_t offset(int64_t slot, int64_t head) const {
    return slot / size * block_stride + slot % size * token_stride + head * head_stride;
  }
};

}  // namespace fd

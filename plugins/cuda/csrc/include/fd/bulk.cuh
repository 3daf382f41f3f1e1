// Copies of whole pieces of memory by the copy engine of sm_90.
#pragma once
#include "fd/hopper.cuh"

namespace fd {

// `bytes` from global to shared memory, all multiples of 16; by one thread, completes on `bar`.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, uint64_t* bar) {
#if FD_SM90A
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared32(to)),
      "l"(from), "r"(bytes), "r"(shared32(bar))
      : "memory");
#endif
}

}  // namespace fd

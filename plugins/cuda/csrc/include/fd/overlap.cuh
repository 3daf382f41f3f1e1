// Programmatic dependent launch (sm_90): a kernel may start while the one before it in the stream
// ends. For kernels that the host starts with run_overlapped; elsewhere both do nothing.
#pragma once

namespace fd {

// Before the first access to memory that an earlier kernel may write or read; by every thread, on
// every path. What comes before it (indices, weights that never change) overlaps.
__device__ __forceinline__ void wait_for_inputs() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start; it still waits for the end of this one before it reads.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Bring what will be read into the second-level cache; allowed before wait_for_inputs(), since that
// cache is where all processors see the same.
__device__ __forceinline__ void fetch_ahead(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

}  // namespace fd

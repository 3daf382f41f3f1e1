// Blocks that read each other's shared memory: the clusters of sm_90. Elsewhere, and in launches
// without clusters, a team is one block.
#pragma once
#include "fd/types.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FD_CLUSTERS 1
#else
#define FD_CLUSTERS 0
#endif

namespace fd {

struct Team {
  int rank, size;

  __device__ __forceinline__ static Team solo() { return {0, 1}; }
  // The cluster that the block is launched in.
  __device__ __forceinline__ static Team here() {
    Team team = solo();
#if FD_CLUSTERS
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(team.rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(team.size));
#endif
    return team;
  }
  // By every thread of every block: what was written to shared memory before is seen by all.
  __device__ __forceinline__ void barrier() const {
#if FD_CLUSTERS
    if (size > 1) {
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }
  // A word of another block's shared memory, given the address of this block's.
  __device__ __forceinline__ uint32_t read(const uint32_t* own, int other) const {
#if FD_CLUSTERS
    if (other != rank) {
      uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(own)), value;
      asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(other));
      asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
      return value;
    }
#endif
    return *own;
  }
};

}  // namespace fd

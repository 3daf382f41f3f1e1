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
    arrive();
    wait();
#else
    __syncthreads();
#endif
  }
  // The two halves of a barrier, for work between them; between two barriers every thread passes
  // both. Before the first access to another block's memory there must have been one: it may not
  // have started.
  __device__ __forceinline__ void arrive() const {
#if FD_CLUSTERS
    if (size > 1) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
  }
  __device__ __forceinline__ void wait() const {
#if FD_CLUSTERS
    if (size > 1) {
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }
  // To a block's shared memory, at the address `own` has in this one's. Seen after a barrier.
  __device__ __forceinline__ void write(float4* own, int other, float4 x) const {
#if FD_CLUSTERS
    if (other != rank) {
      asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(there(own, other)),
                   "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
                   : "memory");
      return;
    }
#endif
    *own = x;
  }
  __device__ __forceinline__ void write(float2* own, int other, float2 x) const {
#if FD_CLUSTERS
    if (other != rank) {
      asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there(own, other)), "f"(x.x),
                   "f"(x.y)
                   : "memory");
      return;
    }
#endif
    *own = x;
  }
  // A word of another block's shared memory, given the address of this block's.
  __device__ __forceinline__ uint32_t read(const uint32_t* own, int other) const {
#if FD_CLUSTERS
    if (other != rank) {
      uint32_t value;
      asm volatile("ld.shared::cluster.u32 %0, [%1];"
                   : "=r"(value)
                   : "r"(there(own, other))
                   : "memory");
      return value;
    }
#endif
    return *own;
  }

 private:
#if FD_CLUSTERS
  __device__ __forceinline__ static uint32_t there(const void* own, int other) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(own));
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(other));
    return address;
  }
#endif
};

}  // namespace fd

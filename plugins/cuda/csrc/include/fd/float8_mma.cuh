// Products of e4m3 codes on tensor cores as they are (sm_89 and newer; sm_90 has them for groups of
// warps only: there the instruction below becomes a conversion to float16, which holds every code,
// and products of those). Nothing happens on older ones: the host never launches them there.
#pragma once
#include "fd/fp8.cuh"
#include "fd/mma.cuh"

namespace fd {

// Two steps of k of e4m3 in the place of one 16-bit element, as int8x2; summed in float.
struct e4m3x2 {
  e4m3 at[2];
};

template <>
__device__ __forceinline__ void mma_16x8x16<e4m3x2>(float (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace fd

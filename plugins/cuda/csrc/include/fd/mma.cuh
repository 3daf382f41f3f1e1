// Tensor-core products and asynchronous copies, sm_80 and newer. Below, the functions do nothing:
// the host never launches kernels that use them there.
//
// One m16n8k16 product in a warp, lane = 4 * g + t:
//   a: rows g and g + 8 of A, four of the sixteen k each: {k0 k1 | row g}, {k0 k1 | row g + 8},
//      {k2 k3 | row g}, {k2 k3 | row g + 8}
//   b: column g of B, the same four k: {k0 k1}, {k2 k3}
//   c: row g, columns 2t and 2t + 1; then row g + 8
// Which k a lane calls its four is free, as long as A and B agree: 16 bytes that a lane reads from
// a row serve two products.
#pragma once
#include "fd/types.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define FD_SM80 1
#else
#define FD_SM80 0
#endif

namespace fd {

// Two steps of k of int8 in the place of one 16-bit element: the same operands then hold 32 steps.
struct int8x2 {
  int8_t at[2];
};

// What products of T are summed in.
template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<int8x2> {
  using type = int32_t;
};

template <typename T>
__device__ __forceinline__ void mma_16x8x16(typename SumOf<T>::type (&c)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_16x8x16<int8x2>(int32_t (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
#if FD_SM80
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
#if FD_SM80
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&c)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
#if FD_SM80
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Shared memory as the instructions below address it.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
#if FD_SM80
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#else
  return 0;
#endif
}

// 16 bytes from global to shared memory, both aligned, past the first-level cache; the last
// 16 - `bytes` of them become zero (bytes = 0 reads nothing, but wants an address all the same).
__device__ __forceinline__ void copy_async16(void* to, const void* from, int bytes = 16) {
#if FD_SM80
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(bytes)
               : "memory");
#endif
}

// 4 bytes, through the first-level cache; zero where `bytes` is 0.
__device__ __forceinline__ void copy_async4(void* to, const void* from, int bytes = 4) {
#if FD_SM80
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
#endif
}

// The copies since the last call are a group.
__device__ __forceinline__ void copy_async_commit() {
#if FD_SM80
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most `N` of the calling thread's newest groups are under way. Other threads see the data
// after a barrier.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
#if FD_SM80
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory; lane i gives the address of row i % 8
// of matrix i / 8 and receives two elements of row lane / 4 of each.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], uint32_t address) {
#if FD_SM80
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

// The same, each matrix transposed on the way.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t address) {
#if FD_SM80
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

// Two elements in one register, `low` in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  Vec<T, 2> pair{{from_float<T>(low), from_float<T>(high)}};
  return *reinterpret_cast<uint32_t*>(&pair);
}

// An 8 x 8 matrix of 16-bit elements spread over a warp, two of row lane / 4 in each lane,
// transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
#if FD_SM80
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(x));
#endif
  return x;
}

}  // namespace fd

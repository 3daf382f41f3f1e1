// Tensor memory copies, barriers and warpgroup products of sm_90a.
//
// Tiles in shared memory are columns of 64 elements (128 bytes) by any number of rows, swizzled as
// the copy engine writes them with SWIZZLE_128B: 16 bytes c of row r lie at c ^ (r % 8). They start
// at multiples of 1024 bytes.
#pragma once
#include <cuda.h>

#include <type_traits>

#include "fd/types.h"

namespace fd {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FD_SM90A 1
#else
#define FD_SM90A 0
#endif

__device__ __forceinline__ uint32_t shared32(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- barriers that count bytes ---

__device__ __forceinline__ void barrier_init(uint64_t* bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared32(bar)), "r"(arrivals));
}

// Makes barriers that were just initialised known to the copy engine; before the block's barrier.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* bar) { barrier_arrive(shared32(bar)); }

// Arrives once the calling thread's copies so far (copy_async16 and the like) are complete.
__device__ __forceinline__ void barrier_arrive_copied(uint64_t* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared32(bar))
               : "memory");
}

// Arrives, and expects `bytes` of copies before the phase completes.
__device__ __forceinline__ void barrier_expect(uint64_t* bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared32(bar)),
               "r"(bytes)
               : "memory");
}

// Until the phase of parity `phase` is complete.
__device__ __forceinline__ void barrier_wait(uint32_t bar, int phase) {
  uint32_t done = 0;
  while (done == 0)
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(bar), "r"(phase)
        : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* bar, int phase) {
  barrier_wait(shared32(bar), phase);
}

// `threads` of the block wait for each other; `id` from 1.
__device__ __forceinline__ void barrier_some(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same, without waiting: the others are told that this warp is there.
__device__ __forceinline__ void barrier_some_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// `threads` of the block wait for each other; whether `found` holds in any.
__device__ __forceinline__ bool barrier_any(int id, int threads, bool found) {
  int any = 0;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.b32 p, %3, 0;\nbar.red.or.pred q, %1, %2, p;\n"
      "selp.b32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<int>(found))
      : "memory");
  return any != 0;
}

// --- copies ---

// The box of `map` at (x, y, z, w) to shared memory; completes on `bar`.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap* map, uint64_t* bar, int x,
                                         int y, int z, int w) {
#if FD_SM90A
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared32(to)),
      "l"(map), "r"(shared32(bar)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
#endif
}

// Ordinary stores to shared memory before this are seen by products and copies after it.
__device__ __forceinline__ void stores_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- products of four warps ---

// A tile whose rows are the product's outer dimension: 8 rows are 1024 bytes apart. The next 16
// elements of the inner dimension start 32 bytes on.
__device__ __forceinline__ uint64_t tile_by_rows(uint32_t address) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) |
         ((address & 0x3ffff) >> 4);
}

// A tile whose rows are the inner dimension; its next 64 columns start `columns` bytes on, its next
// 16 rows 2048.
__device__ __forceinline__ uint64_t tile_by_columns(uint32_t address, int columns) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) |
         (static_cast<uint64_t>(columns >> 4) << 16) | ((address & 0x3ffff) >> 4);
}

// The tile that starts `bytes`, a multiple of 16, behind the start of `tile`.
__device__ __forceinline__ uint64_t tile_after(uint64_t tile, int bytes) {
  return (tile >> 32 << 32) | (static_cast<uint32_t>(tile) + static_cast<uint32_t>(bytes >> 4));
}

__device__ __forceinline__ void products_begin() {
#if FD_SM90A
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void products_commit() {
#if FD_SM90A
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Until at most `N` committed groups are under way.
template <int N>
__device__ __forceinline__ void products_wait() {
#if FD_SM90A
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}

// The compiler moves waits for products up over arithmetic that does not need them, which is then
// not done meanwhile. What `never`, which never holds, is computed from stays before this.
__device__ __forceinline__ void stay_before(bool never) {
  if (never) __trap();
}

// clang-format off
#define FD_WGMMA_128_C "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
#define FD_WGMMA_128_R "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FD_WGMMA_64_C "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
#define FD_WGMMA_64_R "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FD_WGMMA_128_0 "64"
#define FD_WGMMA_128_1 "65"
#define FD_WGMMA_128_2 "66"
#define FD_WGMMA_128_3 "67"
#define FD_WGMMA_128_4 "68"
#define FD_WGMMA_128_5 "69"
#define FD_WGMMA_64_0 "32"
#define FD_WGMMA_64_1 "33"
#define FD_WGMMA_64_2 "34"
#define FD_WGMMA_64_3 "35"
#define FD_WGMMA_64_4 "36"
#define FD_WGMMA_64_5 "37"
// clang-format on

#if FD_SM90A
#define FD_WGMMA_ROWS(n, type)                                                      \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" FD_WGMMA_##n##_2                \
               ", 0;\n"                                                             \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type      \
               " {" FD_WGMMA_##n##_R "}, %" FD_WGMMA_##n##_0 ", %" FD_WGMMA_##n##_1 \
               ", p, 1, 1, 0, 0;\n}"                                                \
               : FD_WGMMA_##n##_C                                                   \
               : "l"(x), "l"(y), "r"(static_cast<int>(add)))
#define FD_WGMMA_COLUMNS(n, type)                                                    \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" FD_WGMMA_##n##_5                 \
               ", 0;\n"                                                              \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type       \
               " {" FD_WGMMA_##n##_R "}, {%" FD_WGMMA_##n##_0 ", %" FD_WGMMA_##n##_1 \
               ", %" FD_WGMMA_##n##_2 ", %" FD_WGMMA_##n##_3 "}, %" FD_WGMMA_##n##_4 \
               ", p, 1, 1, 1;\n}"                                                    \
               : FD_WGMMA_##n##_C                                                    \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(y), "r"(static_cast<int>(add)))
#else
#define FD_WGMMA_ROWS(n, type) (void)c, (void)x, (void)y, (void)add
#define FD_WGMMA_COLUMNS(n, type) (void)c, (void)x, (void)y, (void)add
#endif

// c [64 x N] of float = x [64 x 16] y [16 x N], plus c where `add`. Lane = 4 * g + t of warp w
// holds rows 16 w + g and + 8, columns 8 j + 2 t and + 1, as c[4 j] to c[4 j + 3]. Both from tiles
// by rows.
template <typename T, int N>
__device__ __forceinline__ void product_rows(float (&c)[N / 2], uint64_t x, uint64_t y, bool add) {
  if constexpr (N == 128 && std::is_same_v<T, bf16>) FD_WGMMA_ROWS(128, "bf16");
  if constexpr (N == 128 && std::is_same_v<T, f16>) FD_WGMMA_ROWS(128, "f16");
  if constexpr (N == 64 && std::is_same_v<T, bf16>) FD_WGMMA_ROWS(64, "bf16");
  if constexpr (N == 64 && std::is_same_v<T, f16>) FD_WGMMA_ROWS(64, "f16");
}

// The same; x from registers, as in mma_16x8x16, y from a tile by columns.
template <typename T, int N>
__device__ __forceinline__ void product_columns(float (&c)[N / 2], const uint32_t (&x)[4],
                                                uint64_t y, bool add) {
  if constexpr (N == 128 && std::is_same_v<T, bf16>) FD_WGMMA_COLUMNS(128, "bf16");
  if constexpr (N == 128 && std::is_same_v<T, f16>) FD_WGMMA_COLUMNS(128, "f16");
  if constexpr (N == 64 && std::is_same_v<T, bf16>) FD_WGMMA_COLUMNS(64, "bf16");
  if constexpr (N == 64 && std::is_same_v<T, f16>) FD_WGMMA_COLUMNS(64, "f16");
}

// Registers of the calling warpgroup from here on, a multiple of 8; `fewer` first.
template <int N>
__device__ __forceinline__ void fewer_registers() {
#if FD_SM90A
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
__device__ __forceinline__ void more_registers() {
#if FD_SM90A
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

}  // namespace fd

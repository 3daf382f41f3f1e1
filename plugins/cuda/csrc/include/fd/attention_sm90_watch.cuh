// Tiles of values that rows see differently, for the sm_90a kernel (paged_attention_sm90.cu): warps
// that neither copy nor multiply look through them before they are multiplied.
#pragma once
#include "fd/attention_sm90.cuh"
#include "fd/attention_wild.cuh"

namespace fd {

// The highest bits of a word's halves tell infinities and NaN once one more is added to exponents.
template <typename T>
__device__ __forceinline__ uint32_t sm90_wild(const uint4& pack) {
  constexpr bool kBf16 = std::is_same_v<T, bf16>;
  constexpr uint32_t kExponents = kBf16 ? 0x7f807f80u : 0x7c007c00u;
  constexpr uint32_t kOne = kBf16 ? 0x00800080u : 0x04000400u;
  return ((pack.x & kExponents) + kOne) | ((pack.y & kExponents) + kOne) |
         ((pack.z & kExponents) + kOne) | ((pack.w & kExponents) + kOne);
}

// Weights of keys that a row does not see are zero, but zero times NaN is not. Values that nobody
// sees become zero; whether there are infinities or NaN among those that some rows do not see.
template <typename T, int D>
__device__ __forceinline__ bool sm90_look(const Sm90Span& span, int key, char* tile) {
  constexpr int kThreads = kSm90Watchers * kWarp;
  const int from = key < span.all_begin ? 0 : max(span.all_end - key, 0);
  uint32_t found = 0;
#pragma unroll 4
  for (int i = from * 8 + threadIdx.x - kWarp; i < kSm90Keys * 8; i += kThreads) {
    const int at = key + i / 8;
    const bool unseen = at < span.begin || at >= span.end, all = span.all_see(at);
#pragma unroll
    for (int column = 0; column < D / 64; ++column) {
      uint4& pack = reinterpret_cast<uint4*>(tile)[column * kSm90Keys * 8 + i];
      if (unseen)
        pack = uint4{};
      else
        found |= all ? 0u : sm90_wild<T>(pack);
    }
  }
  return (found & 0x80008000u) != 0;
}

template <typename T, int D>
__device__ __forceinline__ void sm90_watch_tile(const Sm90Span& span, int key, int stage,
                                                Sm90Shared<D>& sh) {
  const bool found = __any_sync(~0u, sm90_look<T, D>(span, key, sh.value[stage]));
  stores_for_async();
  __syncwarp();
  if (threadIdx.x % kWarp > 0) return;
  sh.wild[stage][threadIdx.x / kWarp - 1] = found;
  barrier_arrive(&sh.value_watched[stage]);
}

// A watcher's way through the block's items. It waits for tiles that it need not look at too: a
// barrier tells one turn of a stage from the next only.
template <typename T, int D>
__device__ __forceinline__ void sm90_watch(Sm90Shared<D>& sh) {
  Sm90Turn<kSm90Stages> queries;
  Sm90Turn<kSm90ValueStages> values;
  while (true) {
    barrier_wait(&sh.q_full[queries.stage], queries.phase);
    const Sm90Span span = sh.item[queries.stage];
    const bool more = sh.item[queries.stage].rows > 0;
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(&sh.q_empty[queries.stage]);
    if (!more) return;
    queries.next();
    for (int key = span.first_key(); key < span.end; key += kSm90Keys, values.next()) {
      barrier_wait(&sh.value_full[values.stage], values.phase);
      if (span.uneven(key)) sm90_watch_tile<T, D>(span, key, values.stage, sh);
      if (threadIdx.x % kWarp == 0) barrier_arrive(&sh.value_empty[values.stage]);
    }
  }
}

}  // namespace fd

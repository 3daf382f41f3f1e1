// Prefill over caches of one-byte codes, on tensor cores of sm_80 and newer, as
// paged_attention_tiles.cu does it over 16-bit ones: a block takes a tile of query rows (token,
// head of the group) of one key head and walks over tiles of keys. Codes of the next tile arrive
// while this one is computed; all warps together make them f16, once.
#include "fd/attention_kv8_tiles.cuh"

namespace fd {

template <typename Codes, typename T, int D>
__global__ void __launch_bounds__(kKv8TileThreads, 2)
    paged_attention_kv8_tiles_rows(AttentionArgs a, int min_rows, bool runs) {
  using S = Kv8Tiles<D>;
  extern __shared__ __align__(128) char shared[];
  char* codes = shared + S::AtCodes;
  Kv8TileItem it;
  int* prefix = reinterpret_cast<int*>(codes + 2 * S::Keys * (a.dim + kScaleBytes));
  if (!kv8_tile_item<S::Rows>(a, min_rows, prefix, it)) return;
  int key = it.begin / S::Keys * S::Keys;
  kv8_tile_fetch<S::Keys>(a, it, key, runs, codes);
  kv8_tile_queries<T, D>(a, it, Codes::kPlaced, shared);
  __syncthreads();
  const float* key_scales = reinterpret_cast<const float*>(shared + S::AtScales);
  const float* value_scales = key_scales + S::Keys;
  const int group = a.heads / a.kv_heads, first = it.position + it.first_row / group;
  const int last = it.position + (it.first_row + it.rows - 1) / group;
  const bool bent = attention_bent(a);
  Kv8TileState<T, D> state;
  state.enter(a, it, bent, reinterpret_cast<const float*>(shared + S::AtUnits));
  for (; key < it.end; key += S::Keys) {
    copy_async_wait<0>();
    __syncthreads();
    kv8_tile_widen<Codes, D>(a, it, key, codes, shared);
    __syncthreads();
    if (key + S::Keys < it.end) kv8_tile_fetch<S::Keys>(a, it, key + S::Keys, runs, codes);
    const bool even = key + S::Keys <= first + 1 && key >= attention_first(a, last);
    float s[S::M][S::Keys / 8][4] = {};
    state.products(shared_address(shared), shared_address(shared + S::AtKeys), s);
    state.rate(key_scales, s);
    if (bent) state.bend(a, s);
    if (!even || it.rows < S::Rows) state.mask(a, key, s);
    state.weigh(bent, s);
    const bool wild = state.grow(value_scales);
    state.scale(value_scales, wild && !even, s);
    state.add(shared_address(shared + S::AtValues), s);
  }
  state.write(a, it, Codes::kPlaced);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention_kv8.h"

namespace fd {

constexpr int kKv8TileSequences = 4096;

inline int kv8_tile_dim(int dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }

inline size_t kv8_tile_shared(const AttentionCall& call) {
  const int dim = kv8_tile_dim(call.args.dim), keys = dim > 128 ? 32 : 64;
  const int fixed = dim == 64    ? Kv8Tiles<64>::AtCodes
                    : dim == 128 ? Kv8Tiles<128>::AtCodes
                                 : Kv8Tiles<256>::AtCodes;
  return fixed + 2 * keys * (call.args.dim + kScaleBytes) + sizeof(int) * (call.args.sequences + 1);
}

bool kv8_tiles_fit(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.facts().sm >= 80 && call.quantized() && call.kind != kFloat32 && call.vectors &&
         a.dim <= 256 && a.sequences <= kKv8TileSequences &&
         kv8_tile_shared(call) <= size_t(on.facts().block_shared);
}

template <typename Codes, typename T, int D>
void kv8_tile_launch(const Launch& on, const AttentionCall& call, int min_rows) {
  const AttentionArgs& a = call.args;
  const int64_t rows = int64_t{a.tokens} * call.group();
  const int64_t tiles = rows / Kv8Tiles<D>::Rows + std::min<int64_t>(a.sequences, rows);
  allow_shared_once<paged_attention_kv8_tiles_rows<Codes, T, D>>(on, kv8_tile_shared(call));
  run(on, paged_attention_kv8_tiles_rows<Codes, T, D>,
      dim3(static_cast<unsigned>(tiles * a.kv_heads)), dim3(kKv8TileThreads), kv8_tile_shared(call),
      a, min_rows, code_runs(a));
}

template <typename Codes>
void kv8_tiles_of(const Launch& on, const AttentionCall& call, int min_rows) {
  dispatch_half(call.kind, [&](auto tag) {
    using T = decltype(tag);
    const int dim = kv8_tile_dim(call.args.dim);
    if (dim == 64) return kv8_tile_launch<Codes, T, 64>(on, call, min_rows);
    if (dim == 128) return kv8_tile_launch<Codes, T, 128>(on, call, min_rows);
    kv8_tile_launch<Codes, T, 256>(on, call, min_rows);
  });
}

void attend_kv8_tiles(const Launch& on, const AttentionCall& call, int min_rows) {
  if (call.cache_kind == kE4m3) return kv8_tiles_of<E4m3Codes>(on, call, min_rows);
  kv8_tiles_of<Int8Codes>(on, call, min_rows);
}

// This kernel alone for every row, for tests and benchmarks.
void paged_attention_kv8_tiles(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                               Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                               int64_t window, double soft_cap, Tensor out) {
  const char* op = "paged_attention_kv8_tiles";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, q.size(0), out);
  const Launch on = launch_on(op, q);
  if (nothing_to_do(call)) return;
  if (!kv8_tiles_fit(on, call))
    fail("ValueError", op, ": not for these types, sizes or this device");
  attend_kv8_tiles(on, call, 0);
}
FD_EXPORT(paged_attention_kv8_tiles)

}  // namespace fd
#endif

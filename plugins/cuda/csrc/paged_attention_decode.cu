// Decoding for few sequences, where latency is all: one query token each, its rotation included.
// The keys of a sequence are cut as the split kernel does (attention_split.cuh), but each chunk has
// a block of its own, and eight neighbours are a team that adds up in shared memory; only sequences
// of more teams go through the scratch. Sums are the split kernel's, bit for bit.
//
// Fused (`rope.qkv`): cached keys and values are fetched before the kernel that computes qkv has
// ended. This is right as long as no kernel under way writes them, the lists or the rotation's
// table; the new token's key and value, of which that is not true, come from qkv.
#include "fd/attention_decode.cuh"
#include "fd/overlap.cuh"

namespace fd {

// At most `stages` - 1 groups are under way.
__device__ __forceinline__ void decode_wait(int stages) {
  if (stages == 2) copy_async_wait<1>();
  if (stages == 3) copy_async_wait<2>();
  if (stages >= 4) copy_async_wait<3>();
  __syncwarp();
}

// Whether the block has the last position, and the step's token is what goes there.
template <typename T>
__device__ __forceinline__ bool decode_fresh(const AttentionArgs& a, const RopeAndCache<T, T>& rope,
                                             const DecodeRange& r, const float* row) {
  if (row == nullptr || !r.owns_last()) return false;
  const int at = r.length - 1;
  const int64_t block = attention_block(a, r.sequence, at / a.block_size);
  return rope.slots[r.token] == block * a.block_size + at % a.block_size;
}

// The queries of the unit in registers: from memory, or out of packed rows.
template <typename T, int D>
__device__ __forceinline__ void decode_queries(const AttentionArgs& a,
                                               const RopeAndCache<T, T>& rope, const DecodeRange& r,
                                               const SplitItem& item, const float* row, bool fresh,
                                               SplitState<T, D, 1>& state, DecodeShared<T, D>& sh) {
  state.enter(a, item);
  if (rope.qkv == nullptr) return state.load_queries(a, item);
  wait_for_inputs();
  decode_rope<T, D>(rope, r, row, fresh, item.rows, sh);
  __syncthreads();
  decode_load_queries<T, D>(state, sh);
}

// All tiles of the warp, from its `stages` at `mine`.
template <typename T, int D>
__device__ __forceinline__ void decode_keys(const AttentionArgs& a, const DecodeRange& r,
                                            bool fresh, int stages, char* mine,
                                            DecodeFetch<T, D>& ahead, SplitState<T, D, 1>& state,
                                            const DecodeShared<T, D>& sh) {
  constexpr int kStage = kDecodeStage<D>;
  char* stage = mine;
#pragma unroll 1
  for (int key = r.begin + threadIdx.x / kWarp * kSplitTile; key < r.end;
       key += kSplitWarps * kSplitTile) {
    decode_wait(stages);
    if (fresh && key + kSplitTile >= r.length) decode_insert<T, D>(stage, r.length - 1 - key, sh);
    state.tile(a, stage, key);
    __syncwarp();
    ahead.next(a, stage);
    stage = stage + kStage == mine + stages * kStage ? mine : stage + kStage;
  }
  copy_async_wait<0>();
  __syncwarp();
}

// The team's sums of the elements that this block finishes, `each` packs of four a block.
template <typename T, int D>
__device__ __forceinline__ void decode_finish(const AttentionArgs& a, const DecodeWork& w,
                                              const DecodeRange& r, const Team& team, int each,
                                              DecodeShared<T, D>& sh) {
  const int i = threadIdx.x, pack = team.rank * each + i, group = a.heads / a.kv_heads;
  const bool has = i < each && pack < group * D / 4;
  DecodeSum x{};
  if (has)
    x = decode_sum<kDecodeTeam>(
        r.filled, [&](int c) { return sh.stats[c][pack / (D / 4)]; },
        [&](int c) { return sh.sums[c * each + i]; });
  if (r.teams > 1) return decode_merge<T, D>(a, w, r, team, pack, has, x, sh.is_last);
  if (has) decode_write<T, D>(a, r, pack, x);
}

// Dynamic shared memory: [warps][stages][2][16][D] of T, which the warps' sums take over,
// DecodeShared.
template <typename T, int D>
__global__ void __launch_bounds__(kSplitThreads, 3)
    paged_attention_decode_keys(AttentionArgs a, DecodeWork w, RopeAndCache<T, T> rope,
                                int stages) {
  extern __shared__ __align__(128) char shared[];
  const int step = stages * kDecodeStage<D>, group = a.heads / a.kv_heads;
  auto& sh = *reinterpret_cast<DecodeShared<T, D>*>(shared + kSplitWarps * step);
  char* mine = shared + threadIdx.x / kWarp * step;
  const bool fused = rope.qkv != nullptr;
  if (!fused) wait_for_inputs();
  let_next_start();
  const Team team = Team::here();
  const DecodeRange r = decode_range(a, w, team);
  if (r.team >= r.teams) return;  // the whole team
  team.arrive();
  const float* row = fused ? rope.row(r.token) : nullptr;
  const bool fresh = fused && decode_fresh(a, rope, r, row);
  DecodeFetch<T, D> ahead(a, r, fresh);
  for (int i = 0; i < stages; ++i) ahead.next(a, mine + i * kDecodeStage<D>);
  if (fused) decode_fetch_rope<T, D>(rope, row);

  SplitState<T, D, 1> state;
  decode_queries<T, D>(a, rope, r, decode_item(r, group), row, fresh, state, sh);
  decode_keys<T, D>(a, r, fresh, stages, mine, ahead, state, sh);
  decode_store<T, D>(state, reinterpret_cast<float*>(mine), sh);
  __syncthreads();
  team.wait();
  const int each = (group * D / 4 + kDecodeTeam - 1) / kDecodeTeam;
  decode_share<T, D>(team, group, each, shared, step, sh);
  team.barrier();
  decode_finish<T, D>(a, w, r, team, each, sh);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention_split.h"
#include "fd/rope_cache.h"

namespace fd {

// How a launch is shaped. Two stages are what a short sequence needs, and small enough to start
// beside the kernel before. chunk, wanted: as in SplitShape.
struct DecodeShape {
  int stages = 2, chunk = 0, wanted = 0;
};

inline int decode_dim(int dim) { return dim <= 64 ? 64 : 128; }
inline int decode_units(const AttentionCall& call) {
  return narrow32(int64_t{call.args.sequences} * call.args.kv_heads);
}
inline size_t decode_shared(const AttentionCall& call, int stages) {
  const size_t dim = decode_dim(call.args.dim);
  const size_t state = dim == 64 ? sizeof(DecodeShared<bf16, 64>) : sizeof(DecodeShared<bf16, 128>);
  return size_t{4} * kSplitWarps * stages * kSplitTile * dim + state;
}

inline int decode_teams(int64_t chunks) {
  return (static_cast<int>(std::min<int64_t>(chunks, kSplitMaxChunks)) + kDecodeTeam - 1) /
         kDecodeTeam;
}

// The longest sequence, as far as the block table's width tells.
inline int64_t decode_longest(const AttentionCall& call) {
  return int64_t{call.args.table_width} * call.args.block_size;
}

// One query a sequence, and sequences so few that the device holds nearly all of their teams.
inline bool decode_takes(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.sm() >= 90 && call.max_queries == 1 && call.kind != kFloat32 &&
         call.cache_kind == call.kind && call.vectors && a.dim <= 128 &&
         call.group() <= kDecodeRows && decode_units(call) <= on.processors() &&
         2 * decode_units(call) * kDecodeTeam * decode_teams(split_cut(on, call).wanted) <=
             5 * on.processors();
}

// By itself the kernel has nothing to overlap with, and the split kernel keeps blocks more evenly
// busy: worth it for so many keys of all key heads together. Either gives the same bits.
constexpr int64_t kDecodeKeys = 131072;
bool decode_fits(const Launch& on, const AttentionCall& call) {
  return decode_longest(call) * decode_units(call) <= kDecodeKeys && decode_takes(on, call);
}

inline DecodeWork decode_work(const Launch& on, const AttentionCall& call,
                              const DecodeShape& shape) {
  const AttentionScratch space = attention_scratch(on);
  const SplitCut cut = split_cut(on, call);
  DecodeWork w{};
  w.chunk = shape.chunk > 0 ? shape.chunk : cut.chunk;
  w.wanted = shape.wanted > 0 ? shape.wanted : cut.wanted;
  const int64_t most = std::max<int64_t>(w.wanted, (decode_longest(call) - 1) / kSplitLargest + 1);
  w.teams = decode_teams(most);
  const int64_t packs = call.group() * (decode_dim(call.args.dim) / 4);
  w.partial = reinterpret_cast<float4*>(space.partial), w.counters = space.counters;
  w.stats = reinterpret_cast<float2*>(w.partial + packs * w.teams * decode_units(call));
  return w;
}

template <typename T, int D>
void decode_launch(const Launch& on, const AttentionCall& call, const DecodeShape& shape,
                   const RopeAndCache<T, T>& rope) {
  const size_t shared = decode_shared(call, shape.stages);
  allow_shared_once<paged_attention_decode_keys<T, D>>(on, shared);
  const DecodeWork work = decode_work(on, call, shape);
  const dim3 blocks(decode_units(call) * work.teams * kDecodeTeam);
  cudaLaunchConfig_t config = launch_config(on, blocks, dim3(kSplitThreads), shared);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kDecodeTeam;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes, config.numAttrs = 2;
  launch(on, paged_attention_decode_keys<T, D>, config, call.args, work, rope, shape.stages);
}

template <typename T>
void decode_as(const Launch& on, const AttentionCall& call, const DecodeShape& shape,
               const RopeAndCache<T, T>& rope) {
  if (decode_dim(call.args.dim) == 64) return decode_launch<T, 64>(on, call, shape, rope);
  decode_launch<T, 128>(on, call, shape, rope);
}

inline void decode_plain(const Launch& on, const AttentionCall& call, const DecodeShape& shape) {
  dispatch_half(call.kind, [&](auto tag) {
    decode_as(on, call, shape, RopeAndCache<decltype(tag), decltype(tag)>{});
  });
}

void attend_decode(const Launch& on, const AttentionCall& call) { decode_plain(on, call, {}); }

// This kernel without a rotation, for tests and benchmarks. 0: as where it is fused.
void paged_attention_decode(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                            Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                            int64_t window, double soft_cap, int64_t max_queries, int64_t stages,
                            int64_t chunk, int64_t wanted, Tensor out) {
  const char* op = "paged_attention_decode";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, max_queries, out);
  const Launch on = launch_on(op, q);
  if (nothing_to_do(call)) return;
  if (!decode_takes(on, call))
    fail("ValueError", op, ": not for these types, sizes or this device");
  DecodeShape shape{};
  if (stages > 0) shape.stages = static_cast<int>(stages);
  shape.chunk = static_cast<int>(chunk), shape.wanted = static_cast<int>(wanted);
  decode_plain(on, call, shape);
}
FD_EXPORT(paged_attention_decode)

// Whether the rotation of these heads is what the kernel does: whole heads of 64 or 128, aligned.
template <typename T>
bool decode_turns(const AttentionCall& call, const RopeAndCache<T, T>& rope) {
  return call.args.dim == decode_dim(call.args.dim) && rope_lanes(rope) > 0;
}

// The query heads of packed rows as [tokens, heads, dim].
struct QueryView {
  int64_t shape[3], strides[3];
  DLTensor view;

  QueryView(const Tensor& qkv, int64_t heads, int64_t dim)
      : shape{qkv.size(0), heads, dim}, strides{qkv.stride(0), dim, 1}, view(*qkv.t) {
    view.ndim = 3, view.shape = shape, view.strides = strides;
  }
};

// rope_and_cache, then paged_attention_step on its queries, with equal bits: as one launch where
// decode_takes, which leaves qkv as it is. `max_queries`: of the longest sequence,
// exactly. For engines: lists, table and the cache's earlier tokens may be read before kernels have
// ended that are under way, so none of these may write them; steps are told apart by the copy of
// their lists.
void rope_and_paged_attention(Tensor qkv, Tensor position_ids, Tensor cos_sin_cache,
                              OptTensor q_norm_weight, OptTensor k_norm_weight, double eps,
                              Tensor key_cache, Tensor value_cache, Tensor slot_mapping,
                              bool is_neox, Tensor cu_seqlens_q, Tensor seq_lens,
                              Tensor block_table, OptTensor sinks, double scale, int64_t window,
                              double soft_cap, int64_t max_queries, Tensor out) {
  const char* op = "rope_and_paged_attention";
  const RopeTensors t{qkv, position_ids, cos_sin_cache, q_norm_weight, k_norm_weight,
                      eps, key_cache,    value_cache,   slot_mapping,  is_neox};
  const RopeIds ids = check_rope(op, t);
  const QueryView q(qkv, ids.q_heads, t.dim());
  const AttentionCall call =
      checked_attention(op, Tensor{&q.view}, key_cache, value_cache, cu_seqlens_q, seq_lens,
                        block_table, sinks, scale, window, soft_cap, max_queries, out);
  const Launch on = launch_on(op, qkv);
  check_rope_ids(on, t, ids);
  bool done = false;
  if (!nothing_to_do(call) && decode_takes(on, call))
    dispatch_half(call.kind, [&](auto tag) {
      using T = decltype(tag);
      const RopeAndCache<T, T> rope = rope_call<T, T>(t, ids);
      done = decode_turns(call, rope);
      if (done) decode_as(on, call, DecodeShape{}, rope);
    });
  if (done) return;
  rope_and_cache_all(op, t);
  if (!nothing_to_do(call)) attend_step(on, call);
}
FD_EXPORT(rope_and_paged_attention)

}  // namespace fd
#endif

// Decoding: few query rows against long caches, so everything is about reading keys and values once
// and fast. The keys of a sequence are cut into chunks at absolute positions (flash-decoding); a
// block takes the chunks of the flat list c, c + blocks, ... Inside a chunk each warp runs a
// pipeline of its own over tiles of 16 keys. Products are taken transposed (S^T = K Q^T, O^T = V^T
// P^T), so that the 8 columns of an mma hold the query rows (token, head of the group) and keys
// fill its 16 rows. The last block of a sequence's chunks merges them in their order.
//
// How a sequence is cut depends on its length and on how many there are, unless all chunks together
// outgrow the scratch (a million keys with 8 key heads): then every chunk doubles until they fit.
#include "fd/attention_merge.cuh"
#include "fd/overlap.cuh"

namespace fd {

// Ends the item `it`, if there is one, and begins the block's next, `index`; false behind the last.
// The next queries are on their way meanwhile.
template <typename T, int D, int N>
__device__ __forceinline__ bool split_next(const AttentionArgs& a, const SplitWork& w,
                                           const SplitPlan& plan, SplitShared<D, 8 * N>& sh,
                                           SplitState<T, D, N>& state, SplitItem& it, int& index) {
  const SplitItem done = it;
  const bool more = index < plan.total;
  if (more) {
    it = split_item<8 * N>(a, plan, index);
    state.load_queries(a, it);
    index += gridDim.x;
  }
  if (done.chunks > 0) {
    split_join<T, D, N>(state, sh);
    if (done.chunks == 1)
      split_write_only<T>(a, done, sh);
    else if (split_publish(w, done, sh))
      split_merge<T, D, 8 * N>(a, w, done, sh.weights);
    __syncthreads();
  }
  state.enter(a, it);
  return more;
}

// Dynamic shared memory: [warps][stages][2][16][D] of T, SplitShared, sequences [n], prefix [n +
// 1].
template <typename T, int D, int N>
__global__ void __launch_bounds__(kSplitThreads, D* N <= 128 ? 3 : 2)
    paged_attention_split_keys(AttentionArgs a, SplitWork w, int stages) {
  constexpr int Rows = 8 * N, kStage = 2 * kSplitTile * D * 2;
  extern __shared__ __align__(128) char shared[];
  char* mine = shared + threadIdx.x / kWarp * stages * kStage;
  auto& sh = *reinterpret_cast<SplitShared<D, Rows>*>(shared + kSplitWarps * stages * kStage);
  SplitPlan plan;
  plan.sequences = reinterpret_cast<SplitSequence*>(&sh + 1);
  plan.prefix = reinterpret_cast<int*>(plan.sequences + a.sequences);
  wait_for_inputs();
  split_plan<Rows>(a, w, plan);
  let_next_start();
  SplitFetch<T, D, Rows> ahead;
  ahead.start();
  SplitState<T, D, N> state;
  SplitItem it{};
  // One loop for all: its first `stages` rounds only fetch, so that the code is there once.
  int index = blockIdx.x, key = 0, fill = 0, take = 1;
#pragma unroll 1
  for (int round = 0;; ++round) {
    if (round >= stages) {
      while (key >= it.end) {
        if (!split_next<T, D, N>(a, w, plan, sh, state, it, index)) return;
        key = it.begin / kSplitTile * kSplitTile + threadIdx.x / kWarp * kSplitTile;
      }
      split_wait(stages);
    }
    if (ahead.there(plan)) ahead.fetch(a, mine + fill * kStage);
    copy_async_commit();
    fill = fill + 1 == stages ? 0 : fill + 1;
    ahead.advance(a, plan);
    if (round < stages) continue;
    state.tile(a, mine + take * kStage, key);
    take = take + 1 == stages ? 0 : take + 1;
    key += kSplitWarps * kSplitTile;
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention_split.h"

namespace fd {

inline size_t split_shared(const AttentionCall& call, int stages) {
  return size_t{4} * kSplitWarps * stages * kSplitTile * split_dim(call.args.dim) +
         split_fixed(call);
}

inline SplitShape split_shape(const Launch& on, const AttentionCall& call) {
  return split_shape_of(on, [&](int stages) { return split_shared(call, stages); });
}

SplitCut split_cut(const Launch& on, const AttentionCall& call) {
  return split_cut_over(int64_t{call.args.sequences} * call.args.kv_heads,
                        int64_t{on.processors()} * split_shape(on, call).blocks_per_sm);
}

bool split_fits(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.facts().sm >= 80 && call.kind != kFloat32 && call.cache_kind == call.kind &&
         call.vectors && a.dim <= 256 && a.sequences <= kSplitSequences &&
         split_shape(on, call).stages >= 2;
}

template <typename T, int D, int N>
void split_launch(const Launch& on, const AttentionCall& call, const SplitShape& shape,
                  const SplitWork& w) {
  const size_t shared = split_shared(call, shape.stages);
  allow_shared_once<paged_attention_split_keys<T, D, N>>(on, shared);
  run_overlapped(on, paged_attention_split_keys<T, D, N>,
                 dim3(on.facts().processors * shape.blocks_per_sm), dim3(kSplitThreads), shared,
                 call.args, w, shape.stages);
}

void attend_split_as(const Launch& on, const AttentionCall& call, int max_rows,
                     const SplitShape& shape) {
  const SplitWork w = split_work(on, call, shape, max_rows);
  dispatch_half(call.kind, [&](auto tag) {
    using T = decltype(tag);
    const int dim = split_dim(call.args.dim), columns = split_columns(call);
    if (dim == 64 && columns == 1) return split_launch<T, 64, 1>(on, call, shape, w);
    if (dim == 64) return split_launch<T, 64, 2>(on, call, shape, w);
    if (dim == 128 && columns == 1) return split_launch<T, 128, 1>(on, call, shape, w);
    if (dim == 128) return split_launch<T, 128, 2>(on, call, shape, w);
    split_launch<T, 256, 1>(on, call, shape, w);
  });
}

void attend_split(const Launch& on, const AttentionCall& call, int max_rows) {
  attend_split_as(on, call, max_rows, split_shape(on, call));
}

// Allocates the scratch, so that the first step may be captured.
void paged_attention_reserve(int64_t device) {
  const char* op = "paged_attention_reserve";
  FD_CUDA_CHECK(op, cudaSetDevice(static_cast<int>(device)));
  void* stream = TVMFFIEnvGetStream(kDLCUDA, static_cast<int>(device));
  const Launch on{op, static_cast<int>(device), static_cast<cudaStream_t>(stream)};
  attention_scratch(on);
  attention_queue(on);
}
FD_EXPORT(paged_attention_reserve)

// This kernel alone for every row, for tests and benchmarks. 0: as `attend_split` chooses.
void paged_attention_split(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                           Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                           int64_t window, double soft_cap, int64_t max_queries, int64_t stages,
                           int64_t blocks_per_sm, int64_t chunk, int64_t wanted, Tensor out) {
  const char* op = "paged_attention_split";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, max_queries, out);
  const Launch on = launch_on(op, q);
  if (nothing_to_do(call)) return;
  if (!split_fits(on, call)) fail("ValueError", op, ": not for these types, sizes or this device");
  SplitShape shape = split_shape(on, call);
  if (stages > 0) shape.stages = static_cast<int>(stages);
  if (blocks_per_sm > 0) shape.blocks_per_sm = static_cast<int>(blocks_per_sm);
  if (chunk > 0) shape.chunk = static_cast<int>(chunk);
  if (wanted > 0) shape.wanted = static_cast<int>(wanted);
  attend_split_as(on, call, INT32_MAX, shape);
}
FD_EXPORT(paged_attention_split)

}  // namespace fd
#endif

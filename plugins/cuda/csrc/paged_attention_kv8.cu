// Decoding as paged_attention_split.cu does it, over caches of one-byte codes: half the bytes, so
// tiles of twice the keys.
#include "fd/attention_kv8.cuh"
#include "fd/overlap.cuh"

namespace fd {

template <typename Codes, typename T, int D, int N>
struct Kv8Block {
  const AttentionArgs& a;
  const SplitWork& w;
  SplitPlan plan;
  SplitShared<D, 8 * N>& sh;
  Kv8State<Codes, T, D, N> state;
  SplitItem it;
  int index;

  // Ends the item, if there is one, and begins the block's next; false behind the last. The next
  // queries are on their way meanwhile.
  __device__ __forceinline__ bool next() {
    const SplitItem done = it;
    const bool more = index < plan.total;
    if (more) {
      it = split_item<8 * N>(a, plan, index);
      state.load_queries(a, it);
      index += gridDim.x;
    }
    if (done.chunks > 0) {
      state.finish();
      split_join<T, D, N, Kv8Dims<D>>(state, sh);
      if (done.chunks == 1)
        split_write_only<T>(a, done, sh);
      else if (split_publish(w, done, sh))
        split_merge<T, D, 8 * N>(a, w, done, sh.weights);
      __syncthreads();
    }
    if (more) state.enter(a, it);
    return more;
  }
};

// The oldest of the warp's `stages` - 1 tiles has arrived.
__device__ __forceinline__ void kv8_wait(int stages, Kv8Pages pages, uint64_t* full, int phase) {
#if FD_SM90A
  if (pages.runs) {
    barrier_wait(full, phase);
    return __syncwarp();
  }
#endif
  split_wait(stages);
}

// A barrier for each stage of the warp, which one lane arrives at.
__device__ __forceinline__ void kv8_barriers(uint64_t* full, int stages) {
#if FD_SM90A
  if (threadIdx.x % kWarp < stages) barrier_init(full + threadIdx.x % kWarp, 1);
  barrier_init_done();
#endif
}

// Dynamic shared memory: [warps][stages][2][keys] rows of codes, barriers [warps][stages],
// SplitShared, sequences [n], prefix [n + 1].
template <typename Codes, typename T, int D, int N>
__global__ void __launch_bounds__(kSplitThreads, 2)
    paged_attention_kv8_keys(AttentionArgs a, SplitWork w, int stages, Kv8Pages pages) {
  extern __shared__ __align__(128) char shared[];
  constexpr int Keys = kKv8Keys<D>;
  const int bytes = 2 * Keys * (a.dim + kScaleBytes), warp = threadIdx.x / kWarp;  // of a stage
  char* mine = shared + warp * stages * bytes;
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + kSplitWarps * stages * bytes);
  auto& sh = *reinterpret_cast<SplitShared<D, 8 * N>*>(full + kSplitWarps * stages);
  full += warp * stages;
  kv8_barriers(full, stages);
  Kv8Block<Codes, T, D, N> block{a, w, {}, sh, {}, {}, static_cast<int>(blockIdx.x)};
  block.plan.sequences = reinterpret_cast<SplitSequence*>(&sh + 1);
  block.plan.prefix = reinterpret_cast<int*>(block.plan.sequences + a.sequences);
  wait_for_inputs();
  split_plan<8 * N>(a, w, block.plan);
  let_next_start();
  Kv8Fetch<D, 8 * N> ahead;
  ahead.start();
  // One loop for all: its first `stages` rounds only fetch, so that the code is there once.
  int key = 0, fill = 0, take = 1, phase = 0;
#pragma unroll 1
  for (int round = 0;; ++round) {
    if (round >= stages) {
      while (key >= block.it.end) {
        if (!block.next()) return;
        key = block.it.begin / Keys * Keys + warp * Keys;
      }
      kv8_wait(stages, pages, full + take, phase);
    }
    if (ahead.there(block.plan)) ahead.fetch(a, mine + fill * bytes, pages, full + fill);
    copy_async_commit();
    fill = fill + 1 == stages ? 0 : fill + 1;
    ahead.advance(a, block.plan, pages);
    if (round < stages) continue;
    block.state.tile(a, mine + take * bytes, key);
    take = take + 1 == stages ? 0 : take + 1;
    phase ^= take == 1;  // the first stage is the last of a turn
    key += kSplitWarps * Keys;
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention_kv8.h"
#include "fd/attention_split.h"

namespace fd {

inline size_t kv8_shared(const AttentionCall& call, int stages) {
  const size_t keys = call.args.dim > 64 ? kKv8Keys<128> : kKv8Keys<64>;
  const size_t stage = 2 * keys * (call.args.dim + kScaleBytes) + sizeof(uint64_t);
  return kSplitWarps * stages * stage + split_fixed(call);
}

inline SplitShape kv8_shape(const Launch& on, const AttentionCall& call) {
  return split_shape_of(on, [&](int stages) { return kv8_shared(call, stages); });
}

bool kv8_fits(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.facts().sm >= 80 && call.kind != kFloat32 && call.vectors && a.dim <= 256 &&
         a.sequences <= kSplitSequences && kv8_shape(on, call).stages >= 2;
}

inline Kv8Pages kv8_pages(const AttentionArgs& a) {
  const bool power = (a.block_size & (a.block_size - 1)) == 0;
  int shift = 0;
  while (power && (1 << shift) < a.block_size) ++shift;
  return {power ? shift : -1, code_runs(a)};
}

template <typename Codes, typename T, int D, int N>
void kv8_launch(const Launch& on, const AttentionCall& call, const SplitShape& shape,
                int max_rows) {
  const size_t shared = kv8_shared(call, shape.stages);
  allow_shared_once<paged_attention_kv8_keys<Codes, T, D, N>>(on, shared);
  run_overlapped(on, paged_attention_kv8_keys<Codes, T, D, N>,
                 dim3(on.facts().processors * shape.blocks_per_sm), dim3(kSplitThreads), shared,
                 call.args, split_work(on, call, shape, max_rows), shape.stages,
                 kv8_pages(call.args));
}

template <typename Codes>
void attend_kv8_as(const Launch& on, const AttentionCall& call, const SplitShape& shape,
                   int max_rows) {
  dispatch_half(call.kind, [&](auto tag) {
    using T = decltype(tag);
    const int dim = split_dim(call.args.dim), columns = split_columns(call);
    if (dim == 64 && columns == 1) return kv8_launch<Codes, T, 64, 1>(on, call, shape, max_rows);
    if (dim == 64) return kv8_launch<Codes, T, 64, 2>(on, call, shape, max_rows);
    if (dim == 128 && columns == 1) return kv8_launch<Codes, T, 128, 1>(on, call, shape, max_rows);
    if (dim == 128) return kv8_launch<Codes, T, 128, 2>(on, call, shape, max_rows);
    kv8_launch<Codes, T, 256, 1>(on, call, shape, max_rows);
  });
}

void attend_kv8_in(const Launch& on, const AttentionCall& call, const SplitShape& shape,
                   int max_rows) {
  if (call.cache_kind == kE4m3) return attend_kv8_as<E4m3Codes>(on, call, shape, max_rows);
  attend_kv8_as<Int8Codes>(on, call, shape, max_rows);
}

void attend_kv8(const Launch& on, const AttentionCall& call, int max_rows) {
  attend_kv8_in(on, call, kv8_shape(on, call), max_rows);
}

// This kernel alone, for tests and benchmarks. 0: as `attend_kv8` chooses.
void paged_attention_kv8(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                         Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                         int64_t window, double soft_cap, int64_t max_queries, int64_t stages,
                         int64_t blocks_per_sm, int64_t chunk, int64_t wanted, Tensor out) {
  const char* op = "paged_attention_kv8";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, max_queries, out);
  const Launch on = launch_on(op, q);
  if (nothing_to_do(call)) return;
  if (!call.quantized() || !kv8_fits(on, call))
    fail("ValueError", op, ": not for these types, sizes or this device");
  SplitShape shape = kv8_shape(on, call);
  if (stages > 0) shape.stages = static_cast<int>(stages);
  if (blocks_per_sm > 0) shape.blocks_per_sm = static_cast<int>(blocks_per_sm);
  if (chunk > 0) shape.chunk = static_cast<int>(chunk);
  if (wanted > 0) shape.wanted = static_cast<int>(wanted);
  attend_kv8_in(on, call, shape, INT32_MAX);
}
FD_EXPORT(paged_attention_kv8)

}  // namespace fd
#endif

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

// The oldest of `stages` - 1 groups has arrived.
__device__ __forceinline__ void kv8_wait(int stages, Kv8Pages pages, uint64_t* full, int phase) {
#if FD_SM90A
  if (pages.runs) {
    barrier_wait(full, phase);
    return __syncwarp();
  }
#endif
  if (stages == 2) copy_async_wait<0>();
  if (stages == 3) copy_async_wait<1>();
  if (stages >= 4) copy_async_wait<2>();
  __syncwarp();
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
__global__ void __launch_bounds__(kSplitThreads, N == 1 && D <= 128 ? 3 : 2)
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

namespace fd {

// As paged_attention_split.cu's, whose scratch these kernels share.
constexpr size_t kKv8Scratch = size_t{64} << 20;
constexpr int kKv8Sequences = 4096;
// Keys of the smallest chunk: where sequences alone do not keep the blocks busy, and where they do.
constexpr int kKv8Chunk = 128, kKv8BusyChunk = 512;
// What the end of an item costs: this share of the keys of a long sequence.
constexpr double kKv8End = 0.02;

struct Kv8Shape {
  int stages, blocks_per_sm, chunk, wanted;  // 0: as `kv8_work` thinks best
};

inline int kv8_dim(int dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }
inline int64_t kv8_rows(const AttentionCall& call) {
  return call.group() * std::max<int64_t>(call.max_queries, 1);
}
inline int kv8_columns(const AttentionCall& call) {
  return kv8_rows(call) > 8 && kv8_dim(call.args.dim) < 256 ? 2 : 1;
}

inline size_t kv8_shared(const AttentionCall& call, int stages) {
  const int dim = kv8_dim(call.args.dim), rows = 8 * kv8_columns(call);
  const size_t keys = dim > 64 ? kKv8Keys<128> : kKv8Keys<64>;
  const size_t tiles = 2 * kSplitWarps * stages * keys * (call.args.dim + kScaleBytes);
  const size_t sums = 4 * rows * std::max(dim + 4, kSplitMaxChunks + 1) + 8 * kSplitWarps * rows;
  const size_t plan = (sizeof(SplitSequence) + sizeof(int)) * (call.args.sequences + 1);
  return tiles + 8 * kSplitWarps * stages + sums + 16 + plan;
}

inline Kv8Shape kv8_shape(const Launch& on, const AttentionCall& call) {
  const int most = on.facts().block_shared, all = on.facts().all_shared;
  const auto fits = [&](int stages, int blocks) {
    const int bytes = static_cast<int>(kv8_shared(call, stages));
    return bytes <= most && blocks * (bytes + 1024) <= all;
  };
  const int blocks = fits(2, 2) ? 2 : 1;
  int stages = blocks == 2 ? 3 : 4;
  while (stages > 1 && !fits(stages, blocks)) --stages;
  return {stages, blocks, 0, 0};
}

bool kv8_fits(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.facts().sm >= 80 && call.kind != kFloat32 && call.vectors && a.dim <= 256 &&
         a.sequences <= kKv8Sequences && kv8_shape(on, call).stages >= 2;
}

inline Kv8Pages kv8_pages(const AttentionArgs& a) {
  const bool power = (a.block_size & (a.block_size - 1)) == 0;
  int shift = 0;
  while (power && (1 << shift) < a.block_size) ++shift;
  return {power ? shift : -1, code_runs(a)};
}

// Chunks per sequence that keep the blocks evenly busy, were all of one length.
inline int kv8_wanted(int64_t units, int64_t blocks) {
  int best = 1;
  double least = 1e30;
  for (int n = 1; n <= kSplitMaxChunks; ++n) {
    const double rounds = static_cast<double>((units * n + blocks - 1) / blocks);
    const double time = rounds * (1.0 / n + kKv8End);
    if (time < least * 0.999) best = n, least = time;
  }
  return best;
}

inline SplitWork kv8_work(const Launch& on, const AttentionCall& call, const Kv8Shape& shape,
                          int max_rows) {
  SplitWork w{};
  constexpr size_t kSmallest = (64 + 2) * sizeof(float);
  const int64_t blocks = on.facts().processors * shape.blocks_per_sm;
  const int dim = kv8_dim(call.args.dim), rows = 8 * kv8_columns(call);
  w.rows = static_cast<int>(std::min<int64_t>(rows, kv8_rows(call))), w.max_rows = max_rows;
  w.slots = static_cast<int>(kKv8Scratch / (size_t(w.rows) * (dim + 2) * sizeof(float)));
  const int64_t units = int64_t{call.args.sequences} * call.args.kv_heads;
  w.chunk = shape.chunk > 0 ? shape.chunk : units >= blocks ? kKv8BusyChunk : kKv8Chunk;
  w.wanted = shape.wanted > 0 ? shape.wanted : kv8_wanted(units, blocks);
  w.partial = static_cast<float*>(workspace(on, Scratch::kAttentionPartials, kKv8Scratch));
  w.counters = static_cast<int*>(
      workspace(on, Scratch::kAttentionCounters, kKv8Scratch / kSmallest * sizeof(int)));
  w.stats = w.partial + int64_t{w.slots} * w.rows * dim;
  return w;
}

template <typename Codes, typename T, int D, int N>
void kv8_launch(const Launch& on, const AttentionCall& call, const Kv8Shape& shape, int max_rows) {
  const size_t shared = kv8_shared(call, shape.stages);
  allow_shared_once<paged_attention_kv8_keys<Codes, T, D, N>>(on, shared);
  run_overlapped(on, paged_attention_kv8_keys<Codes, T, D, N>,
                 dim3(on.facts().processors * shape.blocks_per_sm), dim3(kSplitThreads), shared,
                 call.args, kv8_work(on, call, shape, max_rows), shape.stages,
                 kv8_pages(call.args));
}

template <typename Codes>
void attend_kv8_as(const Launch& on, const AttentionCall& call, const Kv8Shape& shape,
                   int max_rows) {
  dispatch_half(call.kind, [&](auto tag) {
    using T = decltype(tag);
    const int dim = kv8_dim(call.args.dim), columns = kv8_columns(call);
    if (dim == 64 && columns == 1) return kv8_launch<Codes, T, 64, 1>(on, call, shape, max_rows);
    if (dim == 64) return kv8_launch<Codes, T, 64, 2>(on, call, shape, max_rows);
    if (dim == 128 && columns == 1) return kv8_launch<Codes, T, 128, 1>(on, call, shape, max_rows);
    if (dim == 128) return kv8_launch<Codes, T, 128, 2>(on, call, shape, max_rows);
    kv8_launch<Codes, T, 256, 1>(on, call, shape, max_rows);
  });
}

void attend_kv8_in(const Launch& on, const AttentionCall& call, const Kv8Shape& shape,
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
  Kv8Shape shape = kv8_shape(on, call);
  if (stages > 0) shape.stages = static_cast<int>(stages);
  if (blocks_per_sm > 0) shape.blocks_per_sm = static_cast<int>(blocks_per_sm);
  if (chunk > 0) shape.chunk = static_cast<int>(chunk);
  if (wanted > 0) shape.wanted = static_cast<int>(wanted);
  attend_kv8_in(on, call, shape, INT32_MAX);
}
FD_EXPORT(paged_attention_kv8)

}  // namespace fd
#endif

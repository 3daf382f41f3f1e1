// Decoding: few query rows against long caches, so everything is about reading keys and values once
// and fast. The keys of a sequence are cut into chunks at absolute positions (flash-decoding); a
// block takes the chunks of the flat list c, c + blocks, ... Inside a chunk each warp runs a
// pipeline of its own over tiles of 16 keys. Products are taken transposed (S^T = K Q^T, O^T = V^T
// P^T), so that the 8 columns of an mma hold the query rows (token, head of the group) and keys
// fill its 16 rows. The last block of a sequence's chunks merges them in their order.
//
// How a sequence is cut depends on its length and on how many there are, unless all chunks together
// outgrow the scratch (a million keys with 8 key heads): then every chunk doubles until they fit.
#include "fd/attention_split.cuh"
#include "fd/overlap.cuh"

namespace fd {

// Shared memory behind the stages.
template <int D, int Rows>
struct SplitShared {
  float sum[Rows][D + 4];  // the padding keeps the lanes of a store in different banks
  float top[kSplitWarps][Rows], total[kSplitWarps][Rows];
  int is_last;
};

template <typename T, int D, int Rows>
__device__ __forceinline__ void split_store(const AttentionArgs& a, const SplitItem& it, int row,
                                            int d, float4 x) {
  const int group = a.heads / a.kv_heads, r = it.first_row + row;
  const int64_t token = a.cu_seqlens_q[it.sequence] + r / group;
  T* to = static_cast<T*>(a.out) + token * a.out_token + (it.head * group + r % group) * a.out_head;
  *reinterpret_cast<uint2*>(to + d) = make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
}

__device__ __forceinline__ float split_sink(const AttentionArgs& a, const SplitItem& it, int row) {
  const int group = a.heads / a.kv_heads;
  if (a.sinks == nullptr) return -INFINITY;
  return a.sinks[it.head * group + (it.first_row + row) % group] * kLog2e;
}

// The warps' sums become the block's, in their order. Leaves the unscaled sums in `sh.sum`.
template <typename T, int D, int N>
__device__ __forceinline__ void split_join(SplitState<T, D, N>& state, SplitShared<D, 8 * N>& sh) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float total = state.total[n][j];
#pragma unroll
      for (int d = 4; d < kWarp; d *= 2) total += __shfl_xor_sync(~0u, total, d);
      const int row = 8 * n + 2 * t + j;
      if (g == 0) sh.top[warp][row] = state.top[n][j], sh.total[warp][row] = total;
    }
  __syncthreads();
  for (int w = 0; w < kSplitWarps; ++w) {
    if (w == warp)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int row = 8 * n + 2 * t + j;
          float top = sh.top[0][row];
          for (int other = 1; other < kSplitWarps; ++other) top = fmaxf(top, sh.top[other][row]);
          const float scale = attention_rescale(state.top[n][j], top);
#pragma unroll
          for (int m = 0; m < D / 16; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& to = sh.sum[row][m * 16 + 8 * half + g];
              to = state.o[n][m][2 * half + j] * scale + (w == 0 ? 0.f : to);
            }
        }
    __syncthreads();
  }
}

// (largest logit, weights' sum) of a row over the block's warps.
template <int D, int Rows>
__device__ __forceinline__ float2 split_stats(const SplitShared<D, Rows>& sh, int row) {
  float top = sh.top[0][row], total = 0.f;
  for (int w = 1; w < kSplitWarps; ++w) top = fmaxf(top, sh.top[w][row]);
  for (int w = 0; w < kSplitWarps; ++w)
    total += sh.total[w][row] * attention_rescale(sh.top[w][row], top);
  return make_float2(top, total);
}

template <typename T, int D, int Rows>
__device__ __forceinline__ void split_write_only(const AttentionArgs& a, const SplitItem& it,
                                                 const SplitShared<D, Rows>& sh) {
  for (int i = threadIdx.x; i < it.rows * D / 4; i += kSplitThreads) {
    const int row = i / (D / 4), d = i % (D / 4) * 4;
    const float2 stats = split_stats(sh, row);
    const int group = a.heads / a.kv_heads, head = it.head * group + (it.first_row + row) % group;
    const float scale = attention_scale(a, head, stats.x, stats.y);
    const float4 x = *reinterpret_cast<const float4*>(&sh.sum[row][d]);
    if (d < a.dim)
      split_store<T, D, Rows>(a, it, row, d,
                              make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale));
  }
}

// This chunk's sums to the scratch; true in the block that finds all others' there.
template <int D, int Rows>
__device__ __forceinline__ bool split_publish(const SplitWork& w, const SplitItem& it,
                                              SplitShared<D, Rows>& sh) {
  const int64_t slot = it.slot + static_cast<int64_t>(it.chunk) * it.step;
  for (int i = threadIdx.x; i < it.rows * D / 4; i += kSplitThreads) {
    const int row = i / (D / 4), d = i % (D / 4) * 4;
    *reinterpret_cast<float4*>(w.partial + (slot * w.rows + row) * D + d) =
        *reinterpret_cast<const float4*>(&sh.sum[row][d]);
  }
  if (threadIdx.x < it.rows)
    *reinterpret_cast<float2*>(w.stats + (slot * w.rows + threadIdx.x) * 2) =
        split_stats(sh, threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    const int before = atomicAdd(w.counters + it.slot, 1);
    sh.is_last = before == it.chunks - 1;
    if (sh.is_last) w.counters[it.slot] = 0;  // for the next launch
    __threadfence();
  }
  __syncthreads();
  return sh.is_last;
}

// Weights of the chunks, [chunks][Rows], normalised: a warp a row.
template <int Rows>
__device__ __forceinline__ void split_weights(const AttentionArgs& a, const SplitWork& w,
                                              const SplitItem& it, float* weights) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int row = warp; row < it.rows; row += kSplitWarps) {
    float2 stats[kSplitMaxChunks / kWarp + 1];  // a window may add a chunk
    float top = split_sink(a, it, row), total = 0.f;
#pragma unroll
    for (int i = 0; i <= kSplitMaxChunks / kWarp; ++i) {
      const int64_t slot = it.slot + int64_t{i * kWarp + lane} * it.step;
      stats[i] = i * kWarp + lane < it.chunks
                     ? __ldcg(reinterpret_cast<const float2*>(w.stats) + slot * w.rows + row)
                     : make_float2(-INFINITY, 0.f);
      top = fmaxf(top, stats[i].x);
    }
    top = warp_reduce<Max>(top);
#pragma unroll
    for (int i = 0; i <= kSplitMaxChunks / kWarp; ++i)
      total += stats[i].y * attention_rescale(stats[i].x, top);
    total = warp_reduce<Sum>(total);
    if (a.sinks != nullptr) total += attention_exp2(split_sink(a, it, row) - top);
    const float scale = total == 0.f ? 0.f : 1.f / total;
#pragma unroll
    for (int i = 0; i <= kSplitMaxChunks / kWarp; ++i)
      if (i * kWarp + lane < it.chunks)
        weights[(i * kWarp + lane) * Rows + row] = scale * attention_rescale(stats[i].x, top);
  }
}

template <typename T, int D, int Rows>
__device__ __forceinline__ void split_merge(const AttentionArgs& a, const SplitWork& w,
                                            const SplitItem& it, float* weights) {
  split_weights<Rows>(a, w, it, weights);
  __syncthreads();
  for (int i = threadIdx.x; i < it.rows * D / 4; i += kSplitThreads) {
    const int row = i / (D / 4), d = i % (D / 4) * 4;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 16
    for (int c = 0; c < it.chunks; ++c) {
      const int64_t slot = it.slot + static_cast<int64_t>(c) * it.step;
      const float4 x =
          __ldcg(reinterpret_cast<const float4*>(w.partial + (slot * w.rows + row) * D + d));
      const float weight = weights[c * Rows + row];
      sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
    }
    if (d < a.dim) split_store<T, D, Rows>(a, it, row, d, sum);
  }
}

// The oldest of `stages` - 1 groups has arrived.
__device__ __forceinline__ void split_wait(int stages) {
  if (stages == 2) copy_async_wait<0>();
  if (stages == 3) copy_async_wait<1>();
  if (stages >= 4) copy_async_wait<2>();
  __syncwarp();
}

// Dynamic shared memory: [warps][stages][2][16][D] of T, SplitShared, weights [chunks + 1][Rows],
// prefix [sequences + 1].
template <typename T, int D, int N>
__global__ void __launch_bounds__(kSplitThreads, D* N <= 128 ? 3 : 2)
    paged_attention_split_keys(AttentionArgs a, SplitWork w, int stages) {
  constexpr int Rows = 8 * N, kStage = 2 * kSplitTile * D * 2;
  extern __shared__ __align__(128) char shared[];
  wait_for_inputs();
  char* mine = shared + threadIdx.x / kWarp * stages * kStage;
  auto& sh = *reinterpret_cast<SplitShared<D, Rows>*>(shared + kSplitWarps * stages * kStage);
  float* weights = reinterpret_cast<float*>(&sh + 1);
  int* prefix = reinterpret_cast<int*>(weights + (kSplitMaxChunks + 1) * Rows);
  int shift;
  const int total = split_plan<Rows>(a, w, prefix, shift);
  let_next_start();
  SplitFetch<T, D, Rows> ahead{static_cast<int>(blockIdx.x), total};
  int fill = 0, take = 0;  // stages
  const auto fetch = [&] {
    if (ahead.index < total) ahead.fetch(a, mine + fill * kStage);
    copy_async_commit();
    fill = fill + 1 == stages ? 0 : fill + 1;
    ahead.advance(a, w, prefix, shift);
  };
  ahead.enter(a, w, prefix, shift);
  for (int i = 1; i < stages; ++i) fetch();
  if (blockIdx.x >= total) return;
  SplitItem it = split_item<Rows>(a, w, prefix, shift, blockIdx.x);
  SplitState<T, D, N> state;
  state.load_queries(a, it);
  for (int index = blockIdx.x; index < total; index += gridDim.x) {
    state.enter(a, it);
    int key = it.begin / kSplitTile * kSplitTile + threadIdx.x / kWarp * kSplitTile;
    for (; key < it.end; key += kSplitWarps * kSplitTile) {
      split_wait(stages);
      fetch();
      state.tile(a, mine + take * kStage, key);
      take = take + 1 == stages ? 0 : take + 1;
    }
    const SplitItem done = it;
    if (index + gridDim.x < total) {
      it = split_item<Rows>(a, w, prefix, shift, index + gridDim.x);
      state.load_queries(a, it);
    }
    split_join<T, D, N>(state, sh);
    if (done.chunks == 1)
      split_write_only<T>(a, done, sh);
    else if (split_publish(w, done, sh))
      split_merge<T, D, Rows>(a, w, done, weights);
    __syncthreads();
  }
  copy_async_wait<0>();
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention.h"
#include "fd/workspace.h"

namespace fd {

// Enough for a million keys of 8 key heads in chunks of 256 at 4 rows of 128.
constexpr size_t kSplitScratch = size_t{64} << 20;
constexpr int kSplitSequences = 4096;
// Blocks find this many chunks each when all sequences are long: enough to even out their ends.
constexpr int kSplitRounds = 4;

// How a launch is shaped: pipeline stages, blocks per multiprocessor, keys of the smallest chunk,
// chunks each block finds.
struct SplitShape {
  int stages, blocks_per_sm, chunk, rounds;
};

inline int split_dim(int dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }
inline int64_t split_rows(const AttentionCall& call) {
  return call.group() * std::max<int64_t>(call.max_queries, 1);
}
inline int split_columns(const AttentionCall& call) {
  return split_rows(call) > 8 && split_dim(call.args.dim) < 256 ? 2 : 1;
}

inline size_t split_shared(const AttentionCall& call, int stages) {
  const int dim = split_dim(call.args.dim), rows = 8 * split_columns(call);
  const size_t tiles = size_t{4} * kSplitWarps * stages * kSplitTile * dim;
  const size_t sums = 4 * rows * (dim + 4) + 8 * kSplitWarps * rows + 16;
  return tiles + sums + 4 * rows * (kSplitMaxChunks + 1) + 4 * (call.args.sequences + 1);
}

// As many blocks as run at once with two stages each, then as many stages as fit beside them.
inline SplitShape split_shape(const Launch& on, const AttentionCall& call) {
  const int most = on.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int all = on.attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const auto fits = [&](int stages, int blocks) {
    const int bytes = static_cast<int>(split_shared(call, stages));
    return bytes <= most && blocks * (bytes + 1024) <= all;
  };
  int blocks = split_dim(call.args.dim) * split_columns(call) <= 128 ? 3 : 2;
  while (blocks > 1 && !fits(2, blocks)) --blocks;
  int stages = 4;
  while (stages > 1 && !fits(stages, blocks)) --stages;
  return {stages, blocks, 256, kSplitRounds};
}

bool split_fits(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.sm() >= 80 && call.kind != kFloat32 && call.cache_kind == call.kind && call.vectors &&
         a.dim <= 256 && a.sequences <= kSplitSequences && split_shape(on, call).stages >= 2;
}

// The scratch, whatever the step: partial results and one counter for each slot of the smallest
// size.
struct SplitSpace {
  float* partial;
  int* counters;
};

inline SplitSpace split_space(const Launch& on) {
  constexpr size_t kSmallest = (64 + 2) * sizeof(float);
  return {static_cast<float*>(workspace(on, Scratch::kAttentionPartials, kSplitScratch)),
          static_cast<int*>(
              workspace(on, Scratch::kAttentionCounters, kSplitScratch / kSmallest * sizeof(int)))};
}

inline SplitWork split_work(const Launch& on, const AttentionCall& call, const SplitShape& shape,
                            int max_rows) {
  SplitWork w{};
  const int64_t blocks = on.processors() * shape.blocks_per_sm;
  const int dim = split_dim(call.args.dim), rows = 8 * split_columns(call);
  w.rows = static_cast<int>(std::min<int64_t>(rows, split_rows(call))), w.max_rows = max_rows;
  const int64_t units = int64_t{call.args.sequences} * call.args.kv_heads;
  w.chunk = shape.chunk;
  w.wanted =
      static_cast<int>(std::clamp<int64_t>(shape.rounds * blocks / units, 1, kSplitMaxChunks / 2));
  w.slots = static_cast<int>(kSplitScratch / (size_t(w.rows) * (dim + 2) * sizeof(float)));
  const SplitSpace space = split_space(on);
  w.partial = space.partial, w.counters = space.counters;
  w.stats = w.partial + int64_t{w.slots} * w.rows * dim;
  return w;
}

template <typename T, int D, int N>
void split_launch(const Launch& on, const AttentionCall& call, const SplitShape& shape,
                  const SplitWork& w) {
  const auto kernel = paged_attention_split_keys<T, D, N>;
  const size_t shared = split_shared(call, shape.stages);
  allow_shared(on, kernel, shared);
  run_overlapped(on, kernel, dim3(on.processors() * shape.blocks_per_sm), dim3(kSplitThreads),
                 shared, call.args, w, shape.stages);
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
  split_space(Launch{op, static_cast<int>(device), static_cast<cudaStream_t>(stream)});
}
FD_EXPORT(paged_attention_reserve)

// This kernel alone for every row, for tests and benchmarks. 0: as `attend_split` chooses.
void paged_attention_split(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                           Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                           int64_t window, double soft_cap, int64_t max_queries, int64_t stages,
                           int64_t blocks_per_sm, int64_t chunk, int64_t rounds, Tensor out) {
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
  if (rounds > 0) shape.rounds = static_cast<int>(rounds);
  attend_split_as(on, call, INT32_MAX, shape);
}
FD_EXPORT(paged_attention_split)

}  // namespace fd
#endif

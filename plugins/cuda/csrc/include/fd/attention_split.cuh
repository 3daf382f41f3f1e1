// The parts of the split kernel (paged_attention_split.cu): how sequences are cut into items, how
// tiles of keys and values are fetched ahead, and a warp's softmax over them.
#pragma once
#include "fd/attention_plan.cuh"
#include "fd/attention_wild.cuh"
#include "fd/mma.cuh"

namespace fd {

constexpr int kSplitWarps = 4, kSplitThreads = kSplitWarps * kWarp;
constexpr int kSplitTile = 16;        // keys of one warp step
constexpr int kSplitLargest = 8192;   // keys of the largest chunk, while chunks are few enough
constexpr int kSplitMaxChunks = 128;  // of a sequence
// Chunks are added up by eights, then the eights: blocks that see each other's memory
// (paged_attention_decode.cu) so get the same bits as those that do not.
constexpr int kSplitGroup = 8, kSplitGroups = kSplitMaxChunks / kSplitGroup + 1;

// Scratch and limits of a launch. partial: [slots][rows][D] float; stats: [slots][rows][2].
struct SplitWork {
  float *partial, *stats;
  int* counters;
  int slots, rows, max_rows;
  int chunk, wanted;  // keys of the smallest chunk; chunks of a sequence that suffice
};

// One block's unit of work: `rows` query rows of a key head against the keys of one chunk.
struct SplitItem {
  int sequence, head, start, first_row, rows;  // start: of the sequence's query tokens
  int begin, end;                              // keys
  int chunk, chunks;                           // which of the sequence's chunks, how many there are
  int slot, step;                              // slots of the chunks of these rows: slot + i * step
  int queries, length;                         // of the sequence
};

// A sequence as the plan finds it, in shared memory. `size`: keys of its chunks.
struct SplitSequence {
  int start, queries, length, size;  // start: of its query tokens

  __device__ __forceinline__ int first(const AttentionArgs& a) const {
    return attention_first(a, max(length - queries, 0));
  }
  __device__ __forceinline__ int first_chunk(const AttentionArgs& a) const {
    return a.window > 0 ? first(a) / size : 0;
  }
};

struct SplitPlan {
  int* prefix;  // items of the sequences before, by key head
  SplitSequence* sequences;
  int total;  // items
};

// Keys of a sequence's chunks: multiples of 64, so that they start where most pages do.
__device__ __forceinline__ int split_chunk(int smallest, int wanted, int length) {
  wanted = max(wanted, (length + kSplitLargest - 1) / kSplitLargest);
  const int chunks = min(wanted, kSplitMaxChunks);
  return max(smallest, ((length + chunks - 1) / chunks + 63) / 64 * 64);
}
__device__ __forceinline__ int split_size(const SplitWork& w, int length, int shift) {
  return split_chunk(w.chunk, w.wanted, length) << shift;
}

// All sequences' items; chunks double until they fit into the slots.
template <int Rows>
__device__ __forceinline__ void split_plan(const AttentionArgs& a, const SplitWork& w,
                                           SplitPlan& plan) {
  const int group = a.heads / a.kv_heads;
  for (int shift = 0;; ++shift) {
    const int items = plan_prefix<kSplitThreads>(a.sequences, plan.prefix, [&](int s) {
      const int start = a.cu_seqlens_q[s], end = a.cu_seqlens_q[s + 1], length = a.seq_lens[s];
      const SplitSequence one{start, end - start, length, split_size(w, length, shift)};
      plan.sequences[s] = one;
      const int rows = one.queries * group;
      if (rows <= 0 || rows > w.max_rows) return 0;
      const int chunks = max((length + one.size - 1) / one.size - one.first_chunk(a), 0);
      return chunks * ((rows + Rows - 1) / Rows);
    });
    plan.total = items * a.kv_heads;
    if (items <= w.slots / a.kv_heads || shift == 16) return;
    __syncthreads();
  }
}

template <int Rows>
__device__ __forceinline__ SplitItem split_item(const AttentionArgs& a, const SplitPlan& plan,
                                                int index) {
  SplitItem it;
  const int group = a.heads / a.kv_heads, flat = index / a.kv_heads;
  const int s = plan_owner(plan.prefix, a.sequences, flat), first_item = plan.prefix[s];
  const SplitSequence one = plan.sequences[s];
  const int rows = one.queries * group, tiles = (rows + Rows - 1) / Rows;
  const int items = plan.prefix[s + 1] - first_item;
  const int local = flat - first_item, tile = tiles == 1 ? 0 : local % tiles;
  it.head = index - flat * a.kv_heads, it.sequence = s, it.start = one.start;
  it.chunk = tiles == 1 ? local : local / tiles, it.chunks = tiles == 1 ? items : items / tiles;
  it.queries = one.queries, it.length = one.length;
  const int from = (one.first_chunk(a) + it.chunk) * one.size;
  it.begin = max(from, one.first(a)), it.end = min(from + one.size, one.length);
  it.first_row = tile * Rows, it.rows = min(Rows, rows - it.first_row);
  it.step = tiles * a.kv_heads, it.slot = (first_item + tile) * a.kv_heads + it.head;
  return it;
}

// The oldest of the warp's `stages` - 1 groups of copies has arrived.
__device__ __forceinline__ void split_wait(int stages) {
  if (stages == 2) copy_async_wait<0>();
  if (stages == 3) copy_async_wait<1>();
  if (stages >= 4) copy_async_wait<2>();
  __syncwarp();
}

// Where 16 bytes of a tile row lie: the eight rows of an ldmatrix fall into different banks.
template <int D>
__device__ __forceinline__ uint32_t split_place(int row, int pack) {
  return (row * (D / 8) + (pack ^ (row & 7))) * 16;
}

// Runs ahead of the arithmetic: the next tile to fetch, over items and across them. Starts before
// the block's first item: `advance` enters it.
template <typename T, int D, int Rows>
struct SplitFetch {
  int index, key, end, begin;  // item; next tile's first key, the chunk's bounds
  int sequence, head, page;    // page: block of this lane's key in the next tile, -1: none

  __device__ __forceinline__ void start() {
    index = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x), key = end = begin = 0;
    page = -1;
  }
  __device__ __forceinline__ bool there(const SplitPlan& plan) const {
    return index >= 0 && index < plan.total;
  }
  __device__ __forceinline__ void advance(const AttentionArgs& a, const SplitPlan& plan) {
    key += kSplitWarps * kSplitTile;
    while (key >= end && index < plan.total) {  // short chunks leave some warps without a tile
      index += gridDim.x;
      if (index >= plan.total) break;
      const SplitItem it = split_item<Rows>(a, plan, index);
      sequence = it.sequence, head = it.head, begin = it.begin, end = it.end;
      key = begin / kSplitTile * kSplitTile + threadIdx.x / kWarp * kSplitTile;
    }
    const int at = key + threadIdx.x % kSplitTile;
    page = index < plan.total && at >= begin && at < end
               ? static_cast<int>(attention_block(a, sequence, at / a.block_size))
               : -1;
  }
  // Copies the tile's keys to `stage` and its values behind them; unseen rows become zero. Lanes 0
  // to 15 know where the keys are, lanes 16 to 31 the values.
  __device__ __forceinline__ void fetch(const AttentionArgs& a, char* stage) const {
    constexpr int kPacks = D / 8;
    const int lane = threadIdx.x % kWarp;
    const bool is_value = lane >= kSplitTile;
    const int slot = (key + lane % kSplitTile) % a.block_size;
    const int64_t mine = page < 0 ? -1
                                  : page * (is_value ? a.value_block : a.key_block) +
                                        slot * (is_value ? a.value_slot : a.key_slot) +
                                        head * (is_value ? a.value_head : a.key_head);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const T* base = static_cast<const T*>(part ? a.value : a.key);
#pragma unroll
      for (int i = 0; i < kSplitTile * kPacks / kWarp; ++i) {
        const int row = (i * kWarp + lane) / kPacks, pack = (i * kWarp + lane) % kPacks;
        const int64_t from = __shfl_sync(0xffffffffu, mine, part * kSplitTile + row);
        const bool there = from >= 0 && pack * 8 < a.dim;
        copy_async16(stage + part * kSplitTile * D * 2 + split_place<D>(row, pack),
                     base + (there ? from + pack * 8 : 0), there ? 16 : 0);
      }
    }
  }
};

// A warp's running softmax over its tiles. Lane = 4 * g + t; columns are query rows: those of s and
// o are 8 * n + 2 * t + j, those of q 8 * n + g.
template <typename T, int D, int N>
struct SplitState {
  float o[N][D / 16][4], top[N][2], total[N][2];
  int first[N][2], last[N][2];  // keys that a column sees
  int all_begin, all_end;       // keys that all columns see
  uint32_t q[N][D / 16][2];

  __device__ __forceinline__ void enter(const AttentionArgs& a, const SplitItem& it) {
    const int group = a.heads / a.kv_heads, t = threadIdx.x % 4, past = it.length - it.queries;
    all_end = past + it.first_row / group + 1;
    all_begin = attention_first(a, past + (it.first_row + it.rows - 1) / group);
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = n * 8 + 2 * t + j;
        const int position = past + (it.first_row + row) / group;
        last[n][j] = row < it.rows ? position : -1;
        first[n][j] = attention_first(a, position);
        top[n][j] = -INFINITY, total[n][j] = 0.f;
      }
#pragma unroll
      for (int m = 0; m < D / 16; ++m) o[n][m][0] = o[n][m][1] = o[n][m][2] = o[n][m][3] = 0.f;
    }
  }

  // The queries, which only the products of this item read: asked for while the last one is
  // finished.
  __device__ __forceinline__ void load_queries(const AttentionArgs& a, const SplitItem& it) {
    const int group = a.heads / a.kv_heads, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int row = it.first_row + n * 8 + g;
      const int64_t token = it.start + row / group;
      const T* from = static_cast<const T*>(a.q) + token * a.q_token +
                      (it.head * group + row % group) * a.q_head;
#pragma unroll
      for (int k = 0; k < D / 8; ++k) {
        const int d = k * 8 + 2 * t;
        const bool there = n * 8 + g < it.rows && d < a.dim;
        q[n][k / 2][k % 2] = there ? *reinterpret_cast<const uint32_t*>(from + d) : 0u;
      }
    }
  }

  // s[n]: key g, columns 2t and 2t + 1; then key g + 8. In two chains, which take half as long.
  __device__ __forceinline__ void products(uint32_t keys, float (&s)[N][4]) const {
    const int lane = threadIdx.x % kWarp, row = lane % 16, half = lane / 16;
    float odd[N][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t tile[4];
      load_matrix_x4(tile, keys + split_place<D>(row, 2 * k + half));
#pragma unroll
      for (int n = 0; n < N; ++n) mma_16x8x16<T>(k % 2 ? odd[n] : s[n], tile, q[n][k]);
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] += odd[n][i];
  }

  __device__ __forceinline__ void to_logits(const AttentionArgs& a, float (&s)[N][4]) const {
    const bool capped = a.soft_cap > 0.f;
    const float scale = a.scale * kLog2e;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = capped ? attention_capped(a, s[n][i]) : s[n][i] * scale;
  }

  // Logits to weights, in place; the old sums shrink where a maximum rises.
  __device__ __forceinline__ void weigh(int key, float (&s)[N][4]) {
    const int g = threadIdx.x % kWarp / 4;
    float old[N][2];
    bool same = true;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float high = -INFINITY;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = key + g + 8 * half;
          const bool seen = at <= last[n][j] && at >= first[n][j];
          s[n][2 * half + j] = seen ? s[n][2 * half + j] : -INFINITY;
          high = fmaxf(high, s[n][2 * half + j]);
        }
#pragma unroll
        for (int d = 4; d < kWarp; d *= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
        high = fmaxf(high, top[n][j]);
        old[n][j] = attention_rescale(top[n][j], high);
        same = same && old[n][j] == 1.f;
        const float zero = high == -INFINITY ? 0.f : high;
        s[n][j] = attention_exp2(s[n][j] - zero), s[n][2 + j] = attention_exp2(s[n][2 + j] - zero);
        total[n][j] = total[n][j] * old[n][j] + (s[n][j] + s[n][2 + j]);
        top[n][j] = high;
      }
    if (__all_sync(~0u, same)) return;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int m = 0; m < D / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][m][i] *= old[n][i % 2];
  }

  __device__ __forceinline__ void add(uint32_t values, const float (&s)[N][4]) {
    const int lane = threadIdx.x % kWarp, row = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
    uint32_t weights[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        weights[n][i] = transposed(pack2<T>(s[n][2 * i], s[n][2 * i + 1]));
#pragma unroll
    for (int m = 0; m < D / 16; ++m) {
      uint32_t tile[4];
      load_matrix_x4_transposed(tile, values + split_place<D>(row, 2 * m + half));
#pragma unroll
      for (int n = 0; n < N; ++n) mma_16x8x16<T>(o[n][m], tile, weights[n]);
    }
  }

  // Infinities and NaN among the values at `values` of key `at`, row `row` of the tile, go to the
  // columns that see it.
  __device__ __forceinline__ void add_wild(const char* values, int row, int at) {
    const int g = threadIdx.x % kWarp / 4;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      const T* pack = reinterpret_cast<const T*>(values + split_place<D>(row, i));
      const float x = wild_part(to_float(pack[g]));
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          o[n][i / 2][i % 2 * 2 + j] += at >= first[n][j] && at <= last[n][j] ? x : 0.f;
    }
  }

  // The same for all of a tile whose columns see different keys; the tile is finite afterwards.
  __device__ __forceinline__ void tame_values(char* values, int key) {
    constexpr int kPacks = D / 8;
    const int lane = threadIdx.x % kWarp;
    const auto all_see = [&](int at) { return at >= all_begin && at < all_end; };
    bool found = false;
    for (int i = lane; i < kSplitTile * kPacks; i += kWarp) {
      uint4 pack = *reinterpret_cast<uint4*>(values + split_place<D>(i / kPacks, i % kPacks));
      found = (tame<T>(pack) && !all_see(key + i / kPacks)) || found;
    }
    if (!__any_sync(~0u, found)) return;
#pragma unroll 1
    for (int row = 0; row < kSplitTile; ++row)
      if (!all_see(key + row)) add_wild(values, row, key + row);
    __syncwarp();
    for (int i = lane; i < kSplitTile * kPacks; i += kWarp)
      if (!all_see(key + i / kPacks))
        tame<T>(*reinterpret_cast<uint4*>(values + split_place<D>(i / kPacks, i % kPacks)));
    __syncwarp();
  }

  __device__ __forceinline__ void tile(const AttentionArgs& a, char* stage, int key) {
    const uint32_t keys = shared_address(stage);
    float s[N][4] = {};
    products(keys, s);
    to_logits(a, s);
    weigh(key, s);
    if (key < all_begin || key + kSplitTile > all_end) tame_values(stage + kSplitTile * D * 2, key);
    add(keys + kSplitTile * D * 2, s);
  }
};

}  // namespace fd

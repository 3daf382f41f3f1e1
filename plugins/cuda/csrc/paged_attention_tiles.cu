// Prefill on tensor cores of sm_80 and newer: a block takes a tile of query rows (token, head of
// the group) of one key head and walks over tiles of keys with an online softmax
// (FlashAttention-2). Keys and values of the next tile arrive while this one is computed.
#include "fd/attention_plan.cuh"
#include "fd/attention_wild.cuh"
#include "fd/mma.cuh"

namespace fd {

constexpr int kTilesWarps = 4, kTilesThreads = kTilesWarps * kWarp;

// D: padded head dimension; M: groups of 16 rows a warp holds; Keys: keys of a tile.
template <int D>
struct TilesShape {
  static constexpr int M = D > 128 ? 1 : 2, Keys = D > 128 ? 32 : 64;
  static constexpr int Rows = kTilesWarps * 16 * M, Packs = D / 8;
  static constexpr int Bytes = (Rows + 4 * Keys) * D * 2;  // queries, two stages of keys and values
};

// A block's work: rows [first_row, first_row + rows) of a sequence against keys [begin, end).
struct TilesItem {
  int sequence, head, first_row, rows, position, begin, end;  // position: of the first row's token
};

// False where the block has nothing to do. The longest tiles of a sequence come first.
template <int Rows>
__device__ __forceinline__ bool tiles_item(const AttentionArgs& a, int min_rows, int* prefix,
                                           TilesItem& it) {
  const int group = a.heads / a.kv_heads, flat = blockIdx.x / a.kv_heads;
  const int total = plan_prefix<kTilesThreads>(a.sequences, prefix, [&](int s) {
    const int rows = (a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s]) * group;
    return rows > min_rows ? (rows + Rows - 1) / Rows : 0;
  });
  if (flat >= total) return false;
  const int s = plan_owner(prefix, a.sequences, flat);
  const int queries = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s];
  it.sequence = s, it.head = blockIdx.x % a.kv_heads;
  it.first_row = (prefix[s + 1] - 1 - flat) * Rows;
  it.rows = min(Rows, queries * group - it.first_row);
  it.position = a.seq_lens[s] - queries;
  it.begin = attention_first(a, it.position + it.first_row / group);
  it.end = it.position + (it.first_row + it.rows - 1) / group + 1;
  return true;
}

// Where 16 bytes of a row lie: the eight rows of an ldmatrix fall into different banks.
template <int D>
__device__ __forceinline__ uint32_t tiles_place(int row, int pack) {
  return (row * (D / 8) + (pack ^ (row & 7))) * 16;
}

template <typename T, int D>
__device__ __forceinline__ void tiles_fetch_queries(const AttentionArgs& a, const TilesItem& it,
                                                    char* to) {
  using S = TilesShape<D>;
  const int group = a.heads / a.kv_heads;
  const T* from = static_cast<const T*>(a.q) + int64_t{a.cu_seqlens_q[it.sequence]} * a.q_token +
                  it.head * group * a.q_head;
  for (int i = threadIdx.x; i < S::Rows * S::Packs; i += kTilesThreads) {
    const int row = i / S::Packs, pack = i % S::Packs, r = it.first_row + row;
    const bool there = row < it.rows && pack * 8 < a.dim;
    const int64_t at = there ? r / group * a.q_token + r % group * a.q_head + pack * 8 : 0;
    copy_async16(to + tiles_place<D>(row, pack), from + at, there ? 16 : 0);
  }
}

// Where a page's slots lie.
struct TilesPage {
  int64_t key, value;
};

__device__ __forceinline__ TilesPage tiles_page(const AttentionArgs& a, const TilesItem& it,
                                                int at) {
  const int64_t block = attention_block(a, it.sequence, at / a.block_size);
  const int64_t slot = at % a.block_size;
  return {block * a.key_block + slot * a.key_slot, block * a.value_block + slot * a.value_slot};
}

// Keys and values from `key` on; unseen rows become zero.
template <typename T, int D>
__device__ __forceinline__ void tiles_fetch(const AttentionArgs& a, const TilesItem& it, int key,
                                            char* to) {
  using S = TilesShape<D>;
  constexpr int kStep = kTilesThreads / S::Packs;
  const int pack = threadIdx.x % S::Packs, row0 = threadIdx.x / S::Packs;
  const T* keys = static_cast<const T*>(a.key) + it.head * a.key_head + pack * 8;
  const T* values = static_cast<const T*>(a.value) + it.head * a.value_head + pack * 8;
  const bool one_page = a.block_size % S::Keys == 0;
  const TilesPage page = one_page ? tiles_page(a, it, key) : TilesPage{};
#pragma unroll
  for (int i = 0; i < S::Keys / kStep; ++i) {
    const int row = i * kStep + row0, at = key + row;
    const bool there = at >= it.begin && at < it.end && pack * 8 < a.dim;
    TilesPage from{page.key + row * a.key_slot, page.value + row * a.value_slot};
    if (!one_page && there) from = tiles_page(a, it, at);
    const uint32_t place = tiles_place<D>(row, pack);
    copy_async16(to + place, keys + (there ? from.key : 0), there ? 16 : 0);
    copy_async16(to + S::Keys * D * 2 + place, values + (there ? from.value : 0), there ? 16 : 0);
  }
  copy_async_commit();
}

// A warp's rows. Lane = 4 * g + t holds rows 16 * m + g and + 8, columns 8 * n + 2 * t and + 1.
template <typename T, int D>
struct TilesState {
  using S = TilesShape<D>;
  float o[S::M][D / 8][4] = {}, top[S::M][2], total[S::M][2] = {};
  int last[S::M][2];  // the last key that a row sees; -1: no row

  __device__ __forceinline__ void enter(const AttentionArgs& a, const TilesItem& it) {
    const int group = a.heads / a.kv_heads;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(m, half);
        last[m][half] = row < it.rows ? it.position + (it.first_row + row) / group : -1;
        top[m][half] = -INFINITY;
      }
  }
  __device__ __forceinline__ static int row_of(int m, int half) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    return (warp * S::M + m) * 16 + lane / 4 + 8 * half;
  }

  __device__ __forceinline__ void products(uint32_t queries, uint32_t keys,
                                           float (&s)[S::M][S::Keys / 8][4]) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t rows[S::M][4];
#pragma unroll
      for (int m = 0; m < S::M; ++m)
        load_matrix_x4(rows[m], queries + tiles_place<D>((warp * S::M + m) * 16 + lane % 16,
                                                         2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < S::Keys / 16; ++n) {
        uint32_t tile[4];
        load_matrix_x4(
            tile, keys + tiles_place<D>(n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
        const uint32_t low[2] = {tile[0], tile[1]}, high[2] = {tile[2], tile[3]};
#pragma unroll
        for (int m = 0; m < S::M; ++m) {
          mma_16x8x16<T>(s[m][2 * n], rows[m], low);
          mma_16x8x16<T>(s[m][2 * n + 1], rows[m], high);
        }
      }
    }
  }

  // Logits that are no multiples of the products by a positive scale.
  __device__ __forceinline__ void bend(const AttentionArgs& a,
                                       float (&s)[S::M][S::Keys / 8][4]) const {
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int n = 0; n < S::Keys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = attention_logit(a, s[m][n][i]);
  }

  __device__ __forceinline__ void mask(const AttentionArgs& a, int key,
                                       float (&s)[S::M][S::Keys / 8][4]) const {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int high = last[m][half] - key - 2 * t;
        const int low = attention_first(a, last[m][half]) - key - 2 * t;
#pragma unroll
        for (int n = 0; n < S::Keys / 8; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (8 * n + j > high || 8 * n + j < low) s[m][n][2 * half + j] = -INFINITY;
      }
  }

  // Products to weights, in place; the old sums shrink where a maximum rises. `scale`: to logits.
  __device__ __forceinline__ void weigh(float scale, float (&s)[S::M][S::Keys / 8][4]) {
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = -INFINITY;
#pragma unroll
        for (int n = 0; n < S::Keys / 8; ++n)
          high = fmaxf(high, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
        high = fmaxf(top[m][half], high * scale);
        const float old = attention_rescale(top[m][half], high);
        const float zero = high == -INFINITY ? 0.f : high;
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < S::Keys / 8; ++n)
#pragma unroll
          for (int j = 2 * half; j < 2 * half + 2; ++j)
            s[m][n][j] = attention_exp2(fmaf(s[m][n][j], scale, -zero)), sum += s[m][n][j];
        total[m][half] = total[m][half] * old + sum, top[m][half] = high;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) o[m][d][2 * half] *= old, o[m][d][2 * half + 1] *= old;
      }
  }

  __device__ __forceinline__ void add(uint32_t values, const float (&s)[S::M][S::Keys / 8][4]) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < S::Keys / 16; ++k) {
      uint32_t weights[S::M][4];
#pragma unroll
      for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          weights[m][i] =
              pack2<T>(s[m][2 * k + i / 2][i % 2 * 2], s[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        uint32_t tile[4];
        load_matrix_x4_transposed(tile,
                                  values + tiles_place<D>(k * 16 + lane % 16, 2 * d + lane / 16));
        const uint32_t low[2] = {tile[0], tile[1]}, high[2] = {tile[2], tile[3]};
#pragma unroll
        for (int m = 0; m < S::M; ++m) {
          mma_16x8x16<T>(o[m][2 * d], weights[m], low);
          mma_16x8x16<T>(o[m][2 * d + 1], weights[m], high);
        }
      }
    }
  }

  // Infinities and NaN among the values of row `row` of a tile, key `at`, go to the rows that see
  // it.
  __device__ __forceinline__ void add_wild(const AttentionArgs& a, const char* values, int row,
                                           int at) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      const T* pack = reinterpret_cast<const T*>(values + tiles_place<D>(row, d)) + 2 * t;
      const float x[2] = {wild_part(to_float(pack[0])), wild_part(to_float(pack[1]))};
#pragma unroll
      for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const bool seen = at <= last[m][half] && at >= attention_first(a, last[m][half]);
            o[m][d][2 * half + j] += seen ? x[j] : 0.f;
          }
    }
  }

  // The same for all of a tile whose rows see different keys, but for those that all see, [begin,
  // end); the others' values are finite afterwards. All threads of the block.
  __device__ __forceinline__ void tame_values(const AttentionArgs& a, char* values, int key,
                                              int begin, int end) {
    const auto all_see = [&](int row) { return key + row >= begin && key + row < end; };
    const auto pack_at = [&](int i) -> uint4& {
      return *reinterpret_cast<uint4*>(values + tiles_place<D>(i / S::Packs, i % S::Packs));
    };
    bool found = false;
    for (int i = threadIdx.x; i < S::Keys * S::Packs; i += kTilesThreads) {
      uint4 pack = pack_at(i);
      found = (tame<T>(pack) && !all_see(i / S::Packs)) || found;
    }
    if (!__syncthreads_or(found)) return;
#pragma unroll 1
    for (int row = 0; row < S::Keys; ++row)
      if (!all_see(row)) add_wild(a, values, row, key + row);
    __syncthreads();
    for (int i = threadIdx.x; i < S::Keys * S::Packs; i += kTilesThreads)
      if (!all_see(i / S::Packs)) tame<T>(pack_at(i));
    __syncthreads();
  }

  __device__ __forceinline__ void write(const AttentionArgs& a, const TilesItem& it) {
    const int group = a.heads / a.kv_heads, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = total[m][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int row = row_of(m, half), r = it.first_row + row, head = it.head * group + r % group;
        if (row >= it.rows) continue;
        const float scale = attention_scale(a, head, top[m][half], sum);
        const int64_t token = a.cu_seqlens_q[it.sequence] + r / group;
        T* to = static_cast<T*>(a.out) + token * a.out_token + head * a.out_head;
#pragma unroll
        for (int d = 0; d < D / 8; ++d)
          if (d * 8 < a.dim)
            *reinterpret_cast<uint32_t*>(to + d * 8 + 2 * t) =
                pack2<T>(o[m][d][2 * half] * scale, o[m][d][2 * half + 1] * scale);
      }
  }
};

// Dynamic shared memory: queries [Rows][D], two stages of keys and values [Keys][D], prefix.
template <typename T, int D>
__global__ void __launch_bounds__(kTilesThreads, 2)
    paged_attention_tiles_rows(AttentionArgs a, int min_rows) {
  using S = TilesShape<D>;
  constexpr int kStage = 2 * S::Keys * D * 2;
  extern __shared__ __align__(128) char shared[];
  TilesItem it;
  if (!tiles_item<S::Rows>(a, min_rows, reinterpret_cast<int*>(shared + S::Bytes), it)) return;
  char* stages = shared + S::Rows * D * 2;
  int key = it.begin / S::Keys * S::Keys;
  tiles_fetch_queries<T, D>(a, it, shared);
  tiles_fetch<T, D>(a, it, key, stages);
  TilesState<T, D> state;
  state.enter(a, it);
  const int last = it.position + (it.first_row + it.rows - 1) / (a.heads / a.kv_heads);
  const int first = it.position + it.first_row / (a.heads / a.kv_heads);
  const bool bent = attention_bent(a);
  const float scale = bent ? 1.f : a.scale * kLog2e;
  for (int stage = 0; key < it.end; key += S::Keys, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();
    if (key + S::Keys < it.end)
      tiles_fetch<T, D>(a, it, key + S::Keys, stages + (stage ^ 1) * kStage);
    const uint32_t keys = shared_address(stages + stage * kStage);
    const int all_begin = attention_first(a, last);
    const bool even = key + S::Keys <= first + 1 && key >= all_begin;
    if (!even)
      state.tame_values(a, stages + stage * kStage + S::Keys * D * 2, key, all_begin, first + 1);
    float s[S::M][S::Keys / 8][4] = {};
    state.products(shared_address(shared), keys, s);
    if (bent) state.bend(a, s);
    if (!even || it.rows < S::Rows) state.mask(a, key, s);
    state.weigh(scale, s);
    state.add(keys + S::Keys * D * 2, s);
  }
  state.write(a, it);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention.h"

namespace fd {

constexpr int kTilesSequences = 4096;

inline int tiles_dim(int dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }

inline size_t tiles_shared(const AttentionCall& call) {
  const int dim = tiles_dim(call.args.dim);
  const int bytes = dim == 64    ? TilesShape<64>::Bytes
                    : dim == 128 ? TilesShape<128>::Bytes
                                 : TilesShape<256>::Bytes;
  return bytes + sizeof(int) * (call.args.sequences + 1);
}

bool tiles_fit(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.facts().sm >= 80 && call.kind != kFloat32 && call.cache_kind == call.kind &&
         call.vectors && a.dim <= 256 && a.sequences <= kTilesSequences &&
         tiles_shared(call) <= size_t(on.facts().block_shared);
}

template <typename T, int D>
void tiles_launch(const Launch& on, const AttentionCall& call, int min_rows) {
  const AttentionArgs& a = call.args;
  const int64_t rows = int64_t{a.tokens} * call.group();
  const int64_t tiles = rows / TilesShape<D>::Rows + std::min<int64_t>(a.sequences, rows);
  allow_shared_once<paged_attention_tiles_rows<T, D>>(on, tiles_shared(call));
  run(on, paged_attention_tiles_rows<T, D>, dim3(static_cast<unsigned>(tiles * a.kv_heads)),
      dim3(kTilesThreads), tiles_shared(call), a, min_rows);
}

void attend_tiles(const Launch& on, const AttentionCall& call, int min_rows) {
  dispatch_half(call.kind, [&](auto tag) {
    using T = decltype(tag);
    const int dim = tiles_dim(call.args.dim);
    if (dim == 64) return tiles_launch<T, 64>(on, call, min_rows);
    if (dim == 128) return tiles_launch<T, 128>(on, call, min_rows);
    tiles_launch<T, 256>(on, call, min_rows);
  });
}

// This kernel alone for every row, for tests and benchmarks.
void paged_attention_tiles(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                           Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                           int64_t window, double soft_cap, Tensor out) {
  const char* op = "paged_attention_tiles";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, q.size(0), out);
  const Launch on = launch_on(op, q);
  if (nothing_to_do(call)) return;
  if (!tiles_fit(on, call)) fail("ValueError", op, ": not for these types, sizes or this device");
  attend_tiles(on, call, 0);
}
FD_EXPORT(paged_attention_tiles)

}  // namespace fd
#endif

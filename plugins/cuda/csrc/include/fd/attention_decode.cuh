// The parts of the decoding kernel (paged_attention_decode.cu): which keys a block takes, and how
// the sums of its warps become the team's, the teams' the sequence's.
#pragma once
#include "fd/attention_merge.cuh"
#include "fd/cluster.cuh"
#include "fd/rope_cache.cuh"

namespace fd {

constexpr int kDecodeTeam = kSplitGroup;                     // blocks of a team
constexpr int kDecodeRows = 8;                               // most query heads of a key head
constexpr int kDecodeTeams = kSplitMaxChunks / kDecodeTeam;  // most of a unit

// Bytes of a warp's stage: a tile of keys, then one of values.
template <int D>
constexpr int kDecodeStage = 2 * kSplitTile * D * 2;

// A unit is a key head of a sequence. partial, stats: [units][teams][rows * D / 4]; counters:
// [units][kDecodeTeam]. teams: that a unit may have; chunk, wanted: as in SplitWork.
struct DecodeWork {
  float4* partial;
  float2* stats;
  int* counters;
  int teams, chunk, wanted;
};

// A block's chunk of its unit: the chunks are those of the split kernel. Teams without one are not
// among `teams`; of this team the first `filled` blocks have one.
struct DecodeRange {
  int unit, sequence, head, token, length, first;
  int team, teams, filled, begin, end;  // begin: a multiple of 16

  __device__ __forceinline__ bool owns_last() const { return begin < end && end == length; }
};

// Its query heads against all of its keys, as SplitState enters it.
__device__ __forceinline__ SplitItem decode_item(const DecodeRange& r, int group) {
  return {r.sequence, r.head, r.token, 0, group, r.begin, r.end, 0, 1, 0, 0, 1, r.length};
}

__device__ __forceinline__ DecodeRange decode_range(const AttentionArgs& a, const DecodeWork& w,
                                                    const Team& team) {
  DecodeRange r;
  const int index = blockIdx.x / kDecodeTeam, units = a.sequences * a.kv_heads;
  r.team = index / units, r.unit = index - r.team * units;
  r.sequence = r.unit / a.kv_heads, r.head = r.unit - r.sequence * a.kv_heads;
  const int start = a.cu_seqlens_q[r.sequence], next = a.cu_seqlens_q[r.sequence + 1];
  r.length = next > start ? a.seq_lens[r.sequence] : 0, r.token = next - 1;
  r.first = attention_first(a, r.length - 1);
  const int size = split_chunk(w.chunk, w.wanted, r.length), before = r.first / size;
  const int chunks = max((r.length + size - 1) / size - before, 0);
  r.teams = min((chunks + kDecodeTeam - 1) / kDecodeTeam, w.teams);
  r.filled = min(max(chunks - r.team * kDecodeTeam, 0), kDecodeTeam);
  const int from = (before + r.team * kDecodeTeam + team.rank) * size;
  r.begin = max(from, r.first) / kSplitTile * kSplitTile, r.end = min(from + size, r.length);
  return r;
}

// A warp's tiles: every fourth of the block's, without the new key, which is `fresh`.
template <typename T, int D>
struct DecodeFetch : SplitFetch<T, D, 8> {
  using Base = SplitFetch<T, D, 8>;
  using Base::begin, Base::end, Base::head, Base::key, Base::page, Base::sequence;
  int stop;  // of tiles: also that of the new key alone is filled, with zeros

  __device__ __forceinline__ DecodeFetch(const AttentionArgs& a, const DecodeRange& r, int fresh) {
    sequence = r.sequence, head = r.head;
    key = r.begin + threadIdx.x / kWarp * kSplitTile;
    begin = max(r.begin, r.first), end = r.end - fresh, stop = r.end;
    look(a);
  }
  __device__ __forceinline__ void look(const AttentionArgs& a) {
    const int at = key + threadIdx.x % kSplitTile;
    page = at >= begin && at < end
               ? static_cast<int>(attention_block(a, sequence, at / a.block_size))
               : -1;
  }
  // The next tile to `stage`, a group of copies whether there is one or not.
  __device__ __forceinline__ void next(const AttentionArgs& a, char* stage) {
    if (key < stop) this->fetch(a, stage);
    copy_async_commit();
    key += kSplitWarps * kSplitTile;
    look(a);
  }
};

// Shared memory behind the stages. new_rows: key and value of the step's token. sums and stats are
// written by the blocks of the team, for the elements that this one finishes.
template <typename T, int D>
struct DecodeShared {
  static constexpr int kPacks = kDecodeRows * D / 4;
  T q[kDecodeRows][D + 8];  // the padding keeps the rows of a load in different banks
  T new_rows[2][D];
  float top[kSplitWarps][kDecodeRows], total[kSplitWarps][kDecodeRows];
  float4 sums[kPacks + kDecodeTeam * kDecodeTeam];
  float2 stats[kDecodeTeam][kDecodeRows];
  int is_last;
};

// What decode_rope will read beside qkv.
template <typename T, int D>
__device__ __forceinline__ void decode_fetch_rope(const RopeAndCache<T, T>& rope,
                                                  const float* row) {
  const int at = threadIdx.x * kPack<T>;
  if (row == nullptr || at >= D / 2) return;
  if (at < rope.half) fetch_ahead(row + at), fetch_ahead(row + rope.half + at);
  if (rope.q_weight == nullptr) return;
  fetch_ahead(rope.q_weight + at), fetch_ahead(rope.q_weight + at + D / 2);
  fetch_ahead(rope.k_weight + at), fetch_ahead(rope.k_weight + at + D / 2);
}

// The query heads of the unit, rotated, to shared memory; in the block with `fresh` the new key and
// value as well, and to the cache. `row`: of the rotation's table.
template <typename T, int D>
__device__ __forceinline__ void decode_rope(const RopeAndCache<T, T>& rope, const DecodeRange& r,
                                            const float* row, bool fresh, int group,
                                            DecodeShared<T, D>& sh) {
  constexpr int kLanes = D / (2 * kPack<T>), kKey = kDecodeRows, kValue = kKey + 1;
  static_assert(kSplitThreads / kLanes > kValue, "one pass over the heads");
  const int item = threadIdx.x / kLanes, at = threadIdx.x % kLanes * kPack<T>;
  const bool is_query = item < group, is_new = fresh && (item == kKey || item == kValue);
  const int head = is_query       ? r.head * group + item
                   : item == kKey ? rope.q_heads + r.head
                                  : rope.q_heads + rope.kv_heads + r.head;
  const float* mine = is_query || is_new ? row : nullptr;
  const HeadPacks<T> x = rope_head<T, T>(rope, r.token, head, mine, at, kLanes);
  if (item >= kDecodeRows && !is_new) return;  // queries that are not there are zero
  T* to = is_new ? sh.new_rows[item - kKey] : sh.q[item];
  store_pack(to + at, x.a), store_pack(to + at + D / 2, x.b);
  if (is_new) rope_cached<T, T>(rope, r.token, head, at, x);
}

template <typename T, int D>
__device__ __forceinline__ void decode_load_queries(SplitState<T, D, 1>& state,
                                                    const DecodeShared<T, D>& sh) {
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int k = 0; k < D / 8; ++k)
    state.q[0][k / 2][k % 2] = *reinterpret_cast<const uint32_t*>(&sh.q[g][k * 8 + 2 * t]);
}

// The new key and value into their row of a tile that has been copied without them.
template <typename T, int D>
__device__ __forceinline__ void decode_insert(char* stage, int row, const DecodeShared<T, D>& sh) {
  constexpr int kPacks = D / 8;
  const int lane = threadIdx.x % kWarp, part = lane / kPacks, pack = lane % kPacks;
  if (part < 2)
    *reinterpret_cast<uint4*>(stage + part * kSplitTile * D * 2 + split_place<D>(row, pack)) =
        *reinterpret_cast<const uint4*>(&sh.new_rows[part][pack * 8]);
  __syncwarp();
}

// The warp's sums to `sums` [rows][D + 4], its own; maxima and totals to `sh`.
template <typename T, int D>
__device__ __forceinline__ void decode_store(const SplitState<T, D, 1>& state, float* sums,
                                             DecodeShared<T, D>& sh) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float total = state.total[0][j];
#pragma unroll
    for (int d = 4; d < kWarp; d *= 2) total += __shfl_xor_sync(~0u, total, d);
    const int row = 2 * t + j;
    if (g == 0) sh.top[warp][row] = state.top[0][j], sh.total[warp][row] = total;
#pragma unroll
    for (int m = 0; m < D / 16; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        sums[row * (D + 4) + m * 16 + 8 * half + g] = state.o[0][m][2 * half + j];
  }
}

// (largest logit, weights' sum) of a row over the block's warps.
template <typename T, int D>
__device__ __forceinline__ float2 decode_stats(const DecodeShared<T, D>& sh, int row) {
  float top = sh.top[0][row], total = 0.f;
#pragma unroll
  for (int w = 1; w < kSplitWarps; ++w) top = fmaxf(top, sh.top[w][row]);
#pragma unroll
  for (int w = 0; w < kSplitWarps; ++w)
    total += sh.total[w][row] * attention_rescale(sh.top[w][row], top);
  return make_float2(top, total);
}

// The block's sums, its warps' in their order, to the blocks that finish them: `each` packs of four
// elements a block. `sums`: of the first warp, `step` bytes before the next one's.
template <typename T, int D>
__device__ __forceinline__ void decode_share(const Team& team, int rows, int each, const char* sums,
                                             int step, DecodeShared<T, D>& sh) {
  for (int i = threadIdx.x; i < rows * D / 4; i += kSplitThreads) {
    const int row = i / (D / 4), owner = i / each;
    const float top = decode_stats<T, D>(sh, row).x;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int w = 0; w < kSplitWarps; ++w) {
      const float* mine = reinterpret_cast<const float*>(sums + w * step) + row * (D + 4);
      sum = split_add(sum, attention_rescale(sh.top[w][row], top),
                      *reinterpret_cast<const float4*>(mine + i % (D / 4) * 4));
    }
    team.write(&sh.sums[team.rank * each + i - owner * each], owner, sum);
  }
  for (int i = threadIdx.x; i < rows * team.size; i += kSplitThreads)
    team.write(&sh.stats[team.rank][i % rows], i / rows, decode_stats<T, D>(sh, i % rows));
}

// (largest logit, weights' sum) and sums of a pack of elements.
struct DecodeSum {
  float top, total;
  float4 sum;
};

// Of `count` parts, at most `Most`, in their order; all are read before any is used.
template <int Most, typename Stats, typename Sums>
__device__ __forceinline__ DecodeSum decode_sum(int count, Stats stats, Sums sums) {
  float2 one[Most];
  float4 x[Most];
#pragma unroll
  for (int c = 0; c < Most; ++c) {
    one[c] = c < count ? stats(c) : make_float2(-INFINITY, 0.f);
    x[c] = c < count ? sums(c) : make_float4(0.f, 0.f, 0.f, 0.f);
  }
  DecodeSum all{-INFINITY, 0.f, make_float4(0.f, 0.f, 0.f, 0.f)};
#pragma unroll
  for (int c = 0; c < Most; ++c) all.top = fmaxf(all.top, one[c].x);
#pragma unroll
  for (int c = 0; c < Most; ++c) {
    const float weight = attention_rescale(one[c].x, all.top);
    all.total += one[c].y * weight;
    all.sum = split_add(all.sum, weight, x[c]);
  }
  return all;
}

template <typename T, int D>
__device__ __forceinline__ void decode_write(const AttentionArgs& a, const DecodeRange& r, int pack,
                                             const DecodeSum& x) {
  const int head = r.head * (a.heads / a.kv_heads) + pack / (D / 4), d = pack % (D / 4) * 4;
  if (d >= a.dim) return;
  const float scale = attention_scale(a, head, x.top, x.total);
  T* to = static_cast<T*>(a.out) + r.token * a.out_token + head * a.out_head + d;
  *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(x.sum.x * scale, x.sum.y * scale),
                                             pack2<T>(x.sum.z * scale, x.sum.w * scale));
}

// What the block wrote before its last barrier is seen by whoever adds next; what others wrote
// before they added, by the block after its next barrier.
__device__ __forceinline__ int add_acq_rel(int* to, int x) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(x)
               : "memory");
  return before;
}

// A sequence of several teams: the last of the blocks of one rank merges what they have. `x`: of
// `pack`, which threads have or not; by all threads.
template <typename T, int D>
__device__ __forceinline__ void decode_merge(const AttentionArgs& a, const DecodeWork& w,
                                             const DecodeRange& r, const Team& team, int pack,
                                             bool has, const DecodeSum& x, int& is_last) {
  const int packs = a.heads / a.kv_heads * D / 4;
  const int64_t mine = int64_t{r.unit} * w.teams * packs + pack;
  if (has) {
    w.partial[mine + r.team * packs] = x.sum;
    w.stats[mine + r.team * packs] = make_float2(x.top, x.total);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int* counter = w.counters + r.unit * kDecodeTeam + team.rank;
    is_last = add_acq_rel(counter, 1) == r.teams - 1;
    if (is_last) *counter = 0;  // for the next launch
  }
  __syncthreads();
  if (!is_last || !has) return;
  decode_write<T, D>(a, r, pack,
                     decode_sum<kDecodeTeams>(
                         r.teams, [&](int c) { return __ldcg(w.stats + mine + c * packs); },
                         [&](int c) { return __ldcg(w.partial + mine + c * packs); }));
}

}  // namespace fd

#include "fd/attention.cuh"
#include "fd/fp8.cuh"
#include "fd/reduce.cuh"

namespace fd {

// Eight lanes read a key's row together, 8 elements at a time; 16 keys are under way in a block.
constexpr int kAttentionLanes = 8, kAttentionThreads = 128;
constexpr int kAttentionTeams = kAttentionThreads / kAttentionLanes;

template <typename T>
__device__ __forceinline__ void load8(const T* from, bool vectors, float (&x)[8]) {
  if (vectors) {
    Vec<T, kPack<T>> pack[8 / kPack<T>];
#pragma unroll
    for (int i = 0; i < 8 / kPack<T>; ++i)
      pack[i] = reinterpret_cast<const Vec<T, kPack<T>>*>(from)[i];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to_float(pack[i / kPack<T>][i % kPack<T>]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to_float(from[i]);
  }
}

// Eight codes; rows of them start at multiples of 4 bytes if at all.
template <typename C>
__device__ __forceinline__ void load8_codes(const C* from, bool vectors, float (&x)[8]) {
  Vec<C, 4> pack[2];
  if (vectors) {
    pack[0] = reinterpret_cast<const Vec<C, 4>*>(from)[0];
    pack[1] = reinterpret_cast<const Vec<C, 4>*>(from)[1];
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) pack[i / 4][i % 4] = from[i];
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = to_float(pack[i / 4][i % 4]);
}
template <>
__device__ __forceinline__ void load8<int8_t>(const int8_t* from, bool vectors, float (&x)[8]) {
  load8_codes(from, vectors, x);
}
template <>
__device__ __forceinline__ void load8<e4m3>(const e4m3* from, bool vectors, float (&x)[8]) {
  load8_codes(from, vectors, x);
}

// What a row's elements are times: the scale behind its `dim` codes.
template <typename T>
__device__ __forceinline__ float row_scale(const T* row, int dim) {
  if constexpr (sizeof(T) > 1) return 1.f;
  const uint8_t* at = reinterpret_cast<const uint8_t*>(row + dim);
  uint32_t bits = 0;
#pragma unroll
  for (int b = 0; b < 4; ++b) bits |= uint32_t{at[b]} << 8 * b;
  return __uint_as_float(bits);
}

// `kind`: 0 float, 1 bf16, 2 f16 (fd/attention.h).
__device__ __forceinline__ float load_kind(const void* from, int64_t at, int kind) {
  if (kind == 0) return static_cast<const float*>(from)[at];
  if (kind == 1) return to_float(static_cast<const bf16*>(from)[at]);
  return to_float(static_cast<const f16*>(from)[at]);
}

__device__ __forceinline__ void store_kind(void* to, int64_t at, int kind, float x) {
  if (kind == 0)
    static_cast<float*>(to)[at] = x;
  else if (kind == 1)
    static_cast<bf16*>(to)[at] = from_float<bf16>(x);
  else
    static_cast<f16*>(to)[at] = from_float<f16>(x);
}

// What one team has summed up: the largest logit, the weights' sum, and P * 8 dimensions per lane.
template <int P>
struct AttentionSums {
  float top = -INFINITY, total = 0.f, value[P][8] = {};
};

template <typename T, int P>
__device__ __forceinline__ float attention_dot(const T* row, const float (&q)[P][8], int lane,
                                               int dim, bool vectors) {
  float dot = 0.f;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int d = (p * kAttentionLanes + lane) * 8;
    if (d >= dim) continue;
    float x[8];
    load8(row + d, vectors, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) dot += x[i] * q[p][i];
  }
#pragma unroll
  for (int step = 1; step < kAttentionLanes; step *= 2)
    dot += __shfl_xor_sync(0xffffffffu, dot, step);
  return dot * row_scale(row, dim);
}

template <typename T, int P>
__device__ __forceinline__ void attention_add(const T* row, float logit, int lane, int dim,
                                              bool vectors, AttentionSums<P>& sums) {
  const float top = fmaxf(sums.top, logit), old = attention_rescale(sums.top, top);
  const float share = attention_exp2(logit - top), weight = share * row_scale(row, dim);
  sums.top = top, sums.total = sums.total * old + share;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int d = (p * kAttentionLanes + lane) * 8;
    if (d >= dim) continue;
    float x[8];
    load8(row + d, vectors, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) sums.value[p][i] = sums.value[p][i] * old + weight * x[i];
  }
}

// The teams' sums become one row, in a fixed order.
template <int P>
__device__ __forceinline__ void attention_finish(const AttentionArgs& a, int64_t at, int head,
                                                 int kind, const AttentionSums<P>& sums) {
  __shared__ float tops[kAttentionTeams], totals[kAttentionTeams];
  __shared__ float values[kAttentionTeams][P * kAttentionLanes * 8];
  const int lane = threadIdx.x % kAttentionLanes, team = threadIdx.x / kAttentionLanes;
  if (lane == 0) tops[team] = sums.top, totals[team] = sums.total;
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      values[team][(p * kAttentionLanes + lane) * 8 + i] = sums.value[p][i];
  __syncthreads();
  const float sink = a.sinks != nullptr ? a.sinks[head] * kLog2e : -INFINITY;
  float top = sink;
  for (int t = 0; t < kAttentionTeams; ++t) top = fmaxf(top, tops[t]);
  float total = a.sinks != nullptr ? attention_exp2(sink - top) : 0.f;
  for (int t = 0; t < kAttentionTeams; ++t) total += totals[t] * attention_rescale(tops[t], top);
  for (int d = threadIdx.x; d < a.dim; d += kAttentionThreads) {
    float x = 0.f;
    for (int t = 0; t < kAttentionTeams; ++t) x += values[t][d] * attention_rescale(tops[t], top);
    store_kind(a.out, at + d, kind, total == 0.f ? 0.f : x / total);
  }
}

// One block a query head of a token: any architecture, type, page size and alignment.
template <typename T, int P>
__global__ void __launch_bounds__(kAttentionThreads)
    paged_attention_rows(AttentionArgs a, int kind, bool vectors) {
  const int token = blockIdx.x / a.heads, head = blockIdx.x % a.heads;
  const int sequence = attention_owner(a, token);
  if (sequence < 0) return;
  const int kv = head / (a.heads / a.kv_heads);
  const int position = a.seq_lens[sequence] - a.cu_seqlens_q[sequence + 1] + token;
  const int lane = threadIdx.x % kAttentionLanes, team = threadIdx.x / kAttentionLanes;
  float q[P][8];
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int d = (p * kAttentionLanes + lane) * 8 + i;
      q[p][i] = d < a.dim ? load_kind(a.q, token * a.q_token + head * a.q_head + d, kind) : 0.f;
    }
  AttentionSums<P> sums;
  for (int base = attention_first(a, position); base <= position; base += kAttentionTeams) {
    const int at = min(base + team, position), slot = at % a.block_size;
    const int64_t block = attention_block(a, sequence, at / a.block_size);
    const T* key = static_cast<const T*>(a.key) + block * a.key_block + slot * a.key_slot;
    const T* value = static_cast<const T*>(a.value) + block * a.value_block + slot * a.value_slot;
    const float dot = attention_dot<T, P>(key + kv * a.key_head, q, lane, a.dim, vectors);
    if (base + team <= position)
      attention_add<T, P>(value + kv * a.value_head, attention_logit(a, dot), lane, a.dim, vectors,
                          sums);
  }
  attention_finish<P>(a, token * a.out_token + head * a.out_head, head, kind, sums);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention.h"

namespace fd {

template <typename T>
void attend_plain_as(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  const auto launch = [&](auto kernel) {
    run(on, kernel, dim3(static_cast<unsigned>(int64_t{a.tokens} * a.heads)),
        dim3(kAttentionThreads), 0, a, call.kind, call.vectors);
  };
  if (a.dim <= 64) return launch(paged_attention_rows<T, 1>);
  if (a.dim <= 128) return launch(paged_attention_rows<T, 2>);
  if (a.dim <= 256) return launch(paged_attention_rows<T, 4>);
  launch(paged_attention_rows<T, 8>);
}

void attend_plain(const Launch& on, const AttentionCall& call) {
  if (call.cache_kind == kFloat32) return attend_plain_as<float>(on, call);
  if (call.cache_kind == kBfloat16) return attend_plain_as<bf16>(on, call);
  if (call.cache_kind == kInt8) return attend_plain_as<int8_t>(on, call);
  if (call.cache_kind == kE4m3) return attend_plain_as<e4m3>(on, call);
  attend_plain_as<f16>(on, call);
}

// Sequences of up to this many rows (queries * group) go through the split kernel, which reads the
// keys once for 8 or 16 of them; others through tiles of 128. The sm_90a kernel is as fast from 9
// rows on, and twice as fast with 32; it leaves it what decodes.
constexpr int kSplitRows = 32, kSplitRows90 = 8;
// Tiles of sm_80 are not parted: where rows of all heads together are so few a multiprocessor,
// reading keys again for every 16 of them is faster than leaving most multiprocessors idle.
constexpr int kSplitRowsEach = 16;

inline int split_most(const Launch& on, const AttentionCall& call, bool sm90) {
  if (sm90) return std::max(kSplitRows90, call.group());
  const int64_t rows = int64_t{call.args.tokens} * call.args.heads;
  return rows <= int64_t{kSplitRowsEach} * on.facts().processors ? INT32_MAX : kSplitRows;
}

// The same over caches of codes.
void attend_codes(const Launch& on, const AttentionCall& call) {
  if (kv8_fits == nullptr || !kv8_fits(on, call)) return attend_plain(on, call);
  const bool tiles = kv8_tiles_fit != nullptr && kv8_tiles_fit(on, call);
  const int most = split_most(on, call, false);
  if (!tiles || call.max_queries * call.group() <= most) return attend_kv8(on, call, INT32_MAX);
  const int few = call.args.sequences > 1 ? most : 0;
  if (few > 0) attend_kv8(on, call, few);
  attend_kv8_tiles(on, call, few);
}

void attend(const Launch& on, const AttentionCall& call) {
  if (call.quantized()) return attend_codes(on, call);
  if (split_fits == nullptr || !split_fits(on, call)) return attend_plain(on, call);
  const bool sm90 = sm90_fits != nullptr && sm90_fits(on, call);
  const int most = split_most(on, call, sm90);
  if (call.max_queries * call.group() <= most) return attend_split(on, call, INT32_MAX);
  if (!sm90 && (tiles_fit == nullptr || !tiles_fit(on, call))) return attend_plain(on, call);
  // Where all sequences can be of the longest's queries, one launch does for them, whatever the
  // lists of a captured step say later.
  const bool mixed = call.args.sequences * call.max_queries > call.args.tokens;
  const int few = mixed ? most : 0;
  if (few > 0) attend_split(on, call, few);
  if (sm90) return attend_sm90(on, call, few);
  attend_tiles(on, call, few);
}

void attend_step(const Launch& on, const AttentionCall& call) {
  if (decode_fits != nullptr && decode_fits(on, call)) return attend_decode(on, call);
  attend(on, call);
}

void paged_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                     Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                     int64_t window, double soft_cap, Tensor out) {
  const char* op = "paged_attention";
  const AttentionCall call = checked_attention(
      op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks, scale, window,
      soft_cap, likely_queries(q.size(0), seq_lens.ndim() == 1 ? seq_lens.size(0) : 0), out);
  const Launch on = launch_on(op, q);
  if (!nothing_to_do(call)) attend(on, call);
}
FD_EXPORT(paged_attention)

// The same with the longest sequence's number of queries, which an engine knows.
void paged_attention_step(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                          Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                          int64_t window, double soft_cap, int64_t max_queries, Tensor out) {
  const char* op = "paged_attention_step";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, max_queries, out);
  const Launch on = launch_on(op, q);
  if (!nothing_to_do(call)) attend_step(on, call);
}
FD_EXPORT(paged_attention_step)

// The kernel of this file alone, for tests and benchmarks.
void paged_attention_plain(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                           Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                           int64_t window, double soft_cap, Tensor out) {
  const char* op = "paged_attention_plain";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, q.size(0), out);
  const Launch on = launch_on(op, q);
  if (!nothing_to_do(call)) attend_plain(on, call);
}
FD_EXPORT(paged_attention_plain)

}  // namespace fd
#endif

// Host side of the attention ops: checks with one message form, and which kernel takes a step.
#pragma once
#include "fd/attention.cuh"
#include "fd/cuda.h"
#include "fd/fp8.h"
#include "fd/workspace.h"

namespace fd {

enum Kind { kFloat32, kBfloat16, kFloat16, kInt8, kE4m3 };

// A checked step. `kind`: q's type, `cache_kind`: the cache's, as kFloat32 and so on.
// `max_queries`: upper bound of one sequence's queries. `vectors`: every row of q, out and the
// caches starts at a multiple of 16 bytes; rows of codes at one of 4.
struct AttentionCall {
  AttentionArgs args;
  int kind, cache_kind;
  int64_t max_queries;
  bool vectors;

  int group() const { return args.heads / args.kv_heads; }
  bool quantized() const { return cache_kind >= kInt8; }
};

inline int kind_of(const char* op, const char* arg, const Tensor& t) {
  int kind = kFloat32;
  dispatch_float(op, arg, t, [&](auto tag) {
    using T = decltype(tag);
    kind = std::is_same_v<T, float> ? kFloat32 : std::is_same_v<T, bf16> ? kBfloat16 : kFloat16;
  });
  return kind;
}

inline int cache_kind_of(const char* op, const Tensor& cache) {
  if (is<int8_t>(cache)) return kInt8;
  return is<e4m3>(cache) ? kE4m3 : kind_of(op, "key_cache", cache);
}

// f(T{}) for a Kind of 16 bits.
template <typename F>
void dispatch_half(int kind, F&& f) {
  if (kind == kBfloat16) return f(bf16{});
  f(f16{});
}

inline void check_attention_lists(const char* op, const Tensor& cu_seqlens_q,
                                  const Tensor& seq_lens, const Tensor& block_table) {
  Check{op, "cu_seqlens_q", cu_seqlens_q}.dtype<int32_t>("int32");
  Check{op, "seq_lens", seq_lens}.dtype<int32_t>("int32").rank(1).contiguous();
  Check{op, "block_table", block_table}.dtype<int32_t>("int32");
  Check{op, "cu_seqlens_q", cu_seqlens_q}.rank(1).dim(0, seq_lens.size(0) + 1).contiguous();
  Check{op, "block_table", block_table}.rank(2).dim(0, seq_lens.size(0)).inner_contiguous();
}

inline void check_attention_tensors(const char* op, const Tensor& q, const Tensor& key_cache,
                                    const Tensor& value_cache, const OptTensor& sinks,
                                    const Tensor& out) {
  Check{op, "q", q}.rank(3).inner_contiguous();
  const int64_t row = q.size(2) + (cache_kind_of(op, key_cache) >= kInt8 ? kScaleBytes : 0);
  Check{op, "key_cache", key_cache}.rank(4).dim(3, row).inner_contiguous();
  Check{op, "value_cache", value_cache}.same_shape(key_cache).same_dtype(key_cache);
  Check{op, "value_cache", value_cache}.inner_contiguous();
  if (sinks)
    Check{op, "sinks", sinks}.rank(1).dim(0, q.size(1)).contiguous().dtype<float>("float32");
  Check{op, "out", out}.same_shape(q).same_dtype(q).inner_contiguous();
}

inline void check_head_dim(const char* op, const char* arg, int64_t dim) {
  if (dim % 8 != 0 || dim < 8 || dim > 512)
    fail("ValueError", op, ".", arg,
         ": want a head dimension that is a multiple of 8 up to 512, have ", dim);
}

inline void check_attention_sizes(const char* op, const Tensor& q, const Tensor& key_cache,
                                  int64_t window, double soft_cap) {
  const int64_t heads = q.size(1), kv_heads = key_cache.size(2);
  check_head_dim(op, "q", q.size(2));
  if (kv_heads == 0 || heads % kv_heads != 0)
    fail("ValueError", op, ".q: want a multiple of the cache's ", kv_heads, " heads, have ", heads);
  if (key_cache.size(1) < 1)
    fail("ValueError", op, ".key_cache: want a block size of at least 1, have ", key_cache.size(1));
  if (window < 0) fail("ValueError", op, ".window: want 0 (all) or more, have ", window);
  if (!(soft_cap >= 0)) fail("ValueError", op, ".soft_cap: want 0 (off) or more, have ", soft_cap);
}

// Rows at multiples of 16 bytes, or of `bytes`: the address, and every stride but the last.
inline bool rows_aligned(const Tensor& t, int bytes = 16) {
  bool aligned = reinterpret_cast<uintptr_t>(t.data<char>()) % bytes == 0;
  for (int d = 0; d + 1 < t.ndim(); ++d)
    aligned = aligned && t.stride(d) * (t.dtype().bits / 8) % bytes == 0;
  return aligned;
}

inline int32_t narrow32(int64_t n) { return static_cast<int32_t>(std::min<int64_t>(n, INT32_MAX)); }

// q and out [tokens, heads, dim], caches [blocks, block_size, kv_heads, dim], all checked.
inline AttentionCall attention_call(const char* op, const Tensor& q, const Tensor& key_cache,
                                    const Tensor& value_cache, const Tensor& cu_seqlens_q,
                                    const Tensor& seq_lens, const Tensor& block_table,
                                    const OptTensor& sinks, double scale, int64_t window,
                                    double soft_cap, int64_t max_queries, const Tensor& out) {
  AttentionCall call{};
  AttentionArgs& a = call.args;
  a.q = q.data<char>(), a.key = key_cache.data<char>(), a.value = value_cache.data<char>();
  a.out = out.data<char>(), a.cu_seqlens_q = cu_seqlens_q.data<int32_t>();
  a.seq_lens = seq_lens.data<int32_t>(), a.block_table = block_table.data<int32_t>();
  a.sinks = sinks ? sinks.data<float>() : nullptr;
  a.q_token = q.stride(0), a.q_head = q.stride(1);
  a.out_token = out.stride(0), a.out_head = out.stride(1);
  a.key_block = key_cache.stride(0), a.key_slot = key_cache.stride(1);
  a.key_head = key_cache.stride(2), a.value_block = value_cache.stride(0);
  a.value_slot = value_cache.stride(1), a.value_head = value_cache.stride(2);
  a.table_row = block_table.stride(0), a.tokens = narrow32(q.size(0));
  a.sequences = narrow32(seq_lens.size(0)), a.heads = narrow32(q.size(1));
  a.kv_heads = narrow32(key_cache.size(2)), a.dim = narrow32(q.size(2));
  a.blocks = narrow32(key_cache.size(0)), a.block_size = narrow32(key_cache.size(1));
  a.table_width = narrow32(block_table.size(1)), a.window = narrow32(window);
  a.scale = static_cast<float>(scale), a.soft_cap = static_cast<float>(soft_cap);
  call.kind = kind_of(op, "q", q), call.cache_kind = cache_kind_of(op, key_cache);
  call.max_queries = std::min(max_queries, q.size(0));
  const int bytes = call.quantized() ? 4 : 16;
  call.vectors = rows_aligned(q) && rows_aligned(out) && rows_aligned(key_cache, bytes) &&
                 rows_aligned(value_cache, bytes);
  return call;
}

// The paged_attention op's arguments, checked; `max_queries` as in AttentionCall.
inline AttentionCall checked_attention(const char* op, Tensor q, Tensor key_cache,
                                       Tensor value_cache, Tensor cu_seqlens_q, Tensor seq_lens,
                                       Tensor block_table, OptTensor sinks, double scale,
                                       int64_t window, double soft_cap, int64_t max_queries,
                                       Tensor out) {
  check_attention_tensors(op, q, key_cache, value_cache, sinks, out);
  check_attention_lists(op, cu_seqlens_q, seq_lens, block_table);
  check_attention_sizes(op, q, key_cache, window, soft_cap);
  same_device(op, q, {key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks, out});
  return attention_call(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, max_queries, out);
}

inline bool nothing_to_do(const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return a.tokens == 0 || a.sequences == 0 || a.heads == 0 || a.blocks == 0 || a.table_width == 0;
}

// What the op's caller does not say: a step with hardly more tokens than sequences is decoding, and
// the split kernel is right for every step.
inline int64_t likely_queries(int64_t tokens, int64_t sequences) {
  return std::max<int64_t>(1, tokens - sequences + 1);
}

// A counter of tiles taken (paged_attention_sm90.cu), zero between launches.
inline int* attention_queue(const Launch& on) {
  return static_cast<int*>(workspace(on, Scratch::kAttentionQueue, sizeof(int)));
}

// Partial results of the split and the decoding kernel, and counters that are zero between
// launches. Enough for a million keys of 8 key heads in chunks of 256 at 4 rows of 128.
constexpr size_t kAttentionScratch = size_t{64} << 20;
struct AttentionScratch {
  float* partial;
  int* counters;
};

// The same sizes whatever the step; one counter for each slot of the smallest size.
inline AttentionScratch attention_scratch(const Launch& on) {
  constexpr size_t kSmallest = (64 + 2) * sizeof(float);
  constexpr size_t kCounters = kAttentionScratch / kSmallest * sizeof(int);
  return {static_cast<float*>(workspace(on, Scratch::kAttentionPartials, kAttentionScratch)),
          static_cast<int*>(workspace(on, Scratch::kAttentionCounters, kCounters))};
}

// Runs the step on the fastest kernels that this build has for the device.
void attend(const Launch& on, const AttentionCall& call);
// The same where `max_queries` is that of the longest sequence, not a guess.
void attend_step(const Launch& on, const AttentionCall& call);

// The kernels; each writes the rows of sequences with `min_rows` < queries * group <= `max_rows`.
// Weak: a build without an architecture of theirs has no such file. `fits` says what they take.
void attend_plain(const Launch& on, const AttentionCall& call);
bool split_fits(const Launch& on, const AttentionCall& call) __attribute__((weak));
void attend_split(const Launch& on, const AttentionCall& call, int max_rows) __attribute__((weak));
bool decode_fits(const Launch& on, const AttentionCall& call) __attribute__((weak));
void attend_decode(const Launch& on, const AttentionCall& call) __attribute__((weak));
bool tiles_fit(const Launch& on, const AttentionCall& call) __attribute__((weak));
void attend_tiles(const Launch& on, const AttentionCall& call, int min_rows) __attribute__((weak));
bool kv8_fits(const Launch& on, const AttentionCall& call) __attribute__((weak));
void attend_kv8(const Launch& on, const AttentionCall& call, int max_rows) __attribute__((weak));
bool kv8_tiles_fit(const Launch& on, const AttentionCall& call) __attribute__((weak));
void attend_kv8_tiles(const Launch& on, const AttentionCall& call, int min_rows)
    __attribute__((weak));
bool sm90_fits(const Launch& on, const AttentionCall& call) __attribute__((weak));
void attend_sm90(const Launch& on, const AttentionCall& call, int min_rows) __attribute__((weak));

}  // namespace fd

#include "fd/attention.cuh"
#include "fd/reduce.cuh"

namespace fd {

constexpr int kAppendWarps = 4, kAppendMaxDim = 512;

// One step of append_attention but for the attention itself; strides in elements, null for absent.
struct AppendArgs {
  const void *qkv, *bias, *sinks;
  const float *cos, *sin, *q_norm, *k_norm;
  void *key, *value, *out, *q;  // q: [tokens, heads, dim], rotated
  const int32_t *past, *queries, *cu_seqlens_q, *block_tables;
  int32_t* seq_lens;
  float* wide_sinks;
  int64_t qkv_token, out_token, key_block, key_head, key_slot, value_block, value_head, value_slot;
  int64_t table_row;
  int32_t tokens, sequences, heads, kv_heads, dim, blocks, block_size, table_width;
  int32_t positions, width, half;  // of the rotary table; half: rotated pairs
  float eps;
  bool neox;
};

// The sequence of token `t`, -1 for padding.
__device__ __forceinline__ int append_owner(const AppendArgs& a, int t) {
  AttentionArgs lists{};
  lists.cu_seqlens_q = a.cu_seqlens_q, lists.sequences = a.sequences;
  return attention_owner(lists, t);
}

// Rotates a head in shared memory; the warp's lanes take a pair each.
__device__ __forceinline__ void append_rotate(const AppendArgs& a, float* head, int position) {
  const int64_t row = int64_t{min(max(position, 0), a.positions - 1)} * a.width;
  for (int j = threadIdx.x % kWarp; j < a.half; j += kWarp) {
    const int first = a.neox ? j : 2 * j, second = a.neox ? j + a.half : 2 * j + 1;
    const float x = head[first], y = head[second], c = a.cos[row + j], s = a.sin[row + j];
    head[first] = x * c - y * s, head[second] = y * c + x * s;
  }
  __syncwarp();
}

__device__ __forceinline__ float append_norm_scale(const AppendArgs& a, const float* head) {
  float sum = 0.f;
  for (int d = threadIdx.x % kWarp; d < a.dim; d += kWarp) sum += head[d] * head[d];
  return rsqrtf(warp_reduce<Sum>(sum) / static_cast<float>(a.dim) + a.eps);
}

// Where a head of a token goes; null where its block is missing.
template <typename T>
__device__ __forceinline__ T* append_target(const AppendArgs& a, int token, int sequence,
                                            int position, int head) {
  if (head < a.heads) return static_cast<T*>(a.q) + (int64_t{token} * a.heads + head) * a.dim;
  const int column = position / a.block_size, slot = position % a.block_size;
  if (column < 0 || column >= a.table_width) return nullptr;
  const int64_t block = a.block_tables[sequence * a.table_row + column];
  if (block < 0 || block >= a.blocks) return nullptr;
  const int kv = (head - a.heads) % a.kv_heads;
  if (head < a.heads + a.kv_heads)
    return static_cast<T*>(a.key) + block * a.key_block + kv * a.key_head + slot * a.key_slot;
  return static_cast<T*>(a.value) + block * a.value_block + kv * a.value_head + slot * a.value_slot;
}

template <typename T>
__device__ __forceinline__ void append_lists(const AppendArgs& a) {
  for (int s = threadIdx.x; s < a.sequences; s += blockDim.x)
    a.seq_lens[s] = a.past[s] + a.queries[s];
  for (int h = threadIdx.x; h < a.heads && a.sinks != nullptr; h += blockDim.x)
    a.wide_sinks[h] = to_float(static_cast<const T*>(a.sinks)[h]);
}

// A warp a head of a token: bias, rotation, norm, one rounding. Padding rows of `out` become zero.
template <typename T>
__global__ void append_attention_heads(AppendArgs a) {
  __shared__ float rows[kAppendWarps][kAppendMaxDim];
  if (blockIdx.x == 0) append_lists<T>(a);
  const int heads = a.heads + 2 * a.kv_heads, parts = (heads + kAppendWarps - 1) / kAppendWarps;
  const int token = blockIdx.x / parts, lane = threadIdx.x % kWarp;
  const int head = blockIdx.x % parts * kAppendWarps + threadIdx.x / kWarp;
  if (head >= heads) return;
  float* row = rows[threadIdx.x / kWarp];
  const int s = append_owner(a, token);
  if (s < 0) {
    T* out = static_cast<T*>(a.out) + token * a.out_token + int64_t{head} * a.dim;
    for (int d = lane; d < a.dim && head < a.heads; d += kWarp) out[d] = from_float<T>(0.f);
    return;
  }
  const int position = a.past[s] + token - a.cu_seqlens_q[s];
  const int64_t at = int64_t{head} * a.dim;
  const T* from = static_cast<const T*>(a.qkv) + token * a.qkv_token + at;
  const T* bias = static_cast<const T*>(a.bias) + at;
  for (int d = lane; d < a.dim; d += kWarp)
    row[d] = to_float(from[d]) + (a.bias != nullptr ? to_float(bias[d]) : 0.f);
  __syncwarp();
  const bool is_value = head >= a.heads + a.kv_heads;
  if (!is_value && a.half > 0) append_rotate(a, row, position);
  const float* norm = is_value ? nullptr : head < a.heads ? a.q_norm : a.k_norm;
  const float scale = norm != nullptr ? append_norm_scale(a, row) : 1.f;
  T* to = append_target<T>(a, token, s, position, head);
  for (int d = lane; d < a.dim && to != nullptr; d += kWarp)
    to[d] = from_float<T>(norm != nullptr ? row[d] * (norm[d] * scale) : row[d]);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/attention.h"
#include "fd/workspace.h"

namespace fd {

// The tensors of one call under their names, and the sizes that follow from them.
struct AppendInputs {
  Tensor qkv, key_cache, value_cache, seq_lens_decoder, seq_lens_this_time, cu_seqlens_q;
  Tensor block_tables;
  OptTensor rotary_embs, qkv_bias, q_norm_weight, k_norm_weight, sinks;
  double eps;
  bool neox;
  int64_t window;
  Tensor out;

  int64_t dim() const { return key_cache.size(3); }
  int64_t kv_heads() const { return key_cache.size(1); }
  int64_t block_size() const { return key_cache.size(2); }
  int64_t heads() const { return qkv.size(1) / dim() - 2 * kv_heads(); }
  int64_t sequences() const { return seq_lens_this_time.numel(); }
};

inline void append_check_caches(const char* op, const AppendInputs& x) {
  Check{op, "key_cache", x.key_cache}.rank(4).same_dtype(x.qkv).inner_contiguous();
  Check{op, "value_cache", x.value_cache}.same_shape(x.key_cache).same_dtype(x.qkv);
  Check{op, "value_cache", x.value_cache}.inner_contiguous();
  check_head_dim(op, "key_cache", x.dim());
  const int64_t dim = x.dim(), width = x.qkv.size(1);
  if (x.block_size() < 1 || x.kv_heads() < 1)
    fail("ValueError", op, ".key_cache: want at least one head and slot, have ",
         shape_text(x.key_cache));
  if (width % dim != 0 || x.heads() < 1 || x.heads() % x.kv_heads() != 0)
    fail("ValueError", op, ".qkv: want (heads + 2 * ", x.kv_heads(), ") * ", dim,
         " columns, heads a multiple of ", x.kv_heads(), ", have ", width);
  Check{op, "out", x.out}.rank(2).dim(0, x.qkv.size(0)).dim(1, x.heads() * dim);
  Check{op, "out", x.out}.same_dtype(x.qkv).inner_contiguous();
}

inline void append_check_options(const char* op, const AppendInputs& x) {
  if (x.qkv_bias)
    Check{op, "qkv_bias", x.qkv_bias}.rank(1).dim(0, x.qkv.size(1)).same_dtype(x.qkv).contiguous();
  if (x.sinks) Check{op, "sinks", x.sinks}.rank(1).dim(0, x.heads()).same_dtype(x.qkv).contiguous();
  if (static_cast<bool>(x.q_norm_weight) != static_cast<bool>(x.k_norm_weight))
    fail("ValueError", op, ".k_norm_weight: want both norm weights or none, have one");
  for (const auto& [name, t] :
       {std::pair("q_norm_weight", x.q_norm_weight), std::pair("k_norm_weight", x.k_norm_weight)})
    if (t) Check{op, name, t}.rank(1).dim(0, x.dim()).dtype<float>("float32").contiguous();
  if (!(x.eps >= 0)) fail("ValueError", op, ".rms_norm_eps: want >= 0, have ", x.eps);
  if (x.window < 0)
    fail("ValueError", op, ".sliding_window: want 0 (all) or more, have ", x.window);
}

inline void append_check_table(const char* op, const AppendInputs& x) {
  if (!x.rotary_embs) return;
  const Check check{op, "rotary_embs", x.rotary_embs};
  check.rank(5).dim(0, 2).dim(1, 1).dim(3, 1).contiguous().dtype<float>("float32");
  const int64_t width = x.rotary_embs.size(4);
  if (x.neox ? width > x.dim() : 2 * width != x.dim())
    fail("ValueError", op, ".rotary_embs: want ", x.neox ? "at most " : "half of ", x.dim(),
         " columns, have ", width);
}

inline void append_check_lists(const char* op, const AppendInputs& x) {
  for (const auto& [name, t] : {std::pair("seq_lens_decoder", x.seq_lens_decoder),
                                std::pair("seq_lens_this_time", x.seq_lens_this_time),
                                std::pair("cu_seqlens_q", x.cu_seqlens_q)})
    Check{op, name, t}.dtype<int32_t>("int32").contiguous();
  Check{op, "seq_lens_decoder", x.seq_lens_decoder}.numel(x.sequences());
  Check{op, "cu_seqlens_q", x.cu_seqlens_q}.numel(x.sequences() + 1);
  Check{op, "block_tables", x.block_tables}.rank(2).dim(0, x.sequences()).inner_contiguous();
  Check{op, "block_tables", x.block_tables}.dtype<int32_t>("int32");
}

inline void append_lists_and_sizes(const AppendInputs& x, AppendArgs& a) {
  a.past = x.seq_lens_decoder.data<int32_t>(), a.queries = x.seq_lens_this_time.data<int32_t>();
  a.cu_seqlens_q = x.cu_seqlens_q.data<int32_t>();
  a.block_tables = x.block_tables.data<int32_t>(), a.table_row = x.block_tables.stride(0);
  a.tokens = narrow32(x.qkv.size(0)), a.sequences = narrow32(x.sequences());
  a.heads = narrow32(x.heads()), a.kv_heads = narrow32(x.kv_heads()), a.dim = narrow32(x.dim());
  a.blocks = narrow32(x.key_cache.size(0)), a.block_size = narrow32(x.block_size());
  a.table_width = narrow32(x.block_tables.size(1));
  a.eps = static_cast<float>(x.eps), a.neox = x.neox;
  if (!x.rotary_embs || x.rotary_embs.numel() == 0) return;
  a.cos = x.rotary_embs.data<float>(), a.sin = a.cos + x.rotary_embs.numel() / 2;
  a.positions = narrow32(x.rotary_embs.size(2)), a.width = narrow32(x.rotary_embs.size(4));
  a.half = std::min(a.dim, 2 * a.width) / 2;
}

// Queries, lengths and sinks lie in `space`, in this order.
inline AppendArgs append_args(const AppendInputs& x, char* space, int64_t q_bytes) {
  AppendArgs a{};
  a.qkv = x.qkv.data<char>(), a.qkv_token = x.qkv.stride(0);
  a.out = x.out.data<char>(), a.out_token = x.out.stride(0);
  a.key = x.key_cache.data<char>(), a.value = x.value_cache.data<char>();
  a.key_block = x.key_cache.stride(0), a.key_head = x.key_cache.stride(1);
  a.key_slot = x.key_cache.stride(2), a.value_block = x.value_cache.stride(0);
  a.value_head = x.value_cache.stride(1), a.value_slot = x.value_cache.stride(2);
  a.bias = x.qkv_bias ? x.qkv_bias.data<char>() : nullptr;
  a.sinks = x.sinks ? x.sinks.data<char>() : nullptr;
  a.q_norm = x.q_norm_weight ? x.q_norm_weight.data<float>() : nullptr;
  a.k_norm = x.k_norm_weight ? x.k_norm_weight.data<float>() : nullptr;
  append_lists_and_sizes(x, a);
  a.q = space, a.seq_lens = reinterpret_cast<int32_t*>(space + q_bytes);
  a.wide_sinks = reinterpret_cast<float*>(a.seq_lens + a.sequences);
  return a;
}

// The attention that follows, over queries in the scratch.
inline AttentionCall append_call(const char* op, const AppendInputs& x, const AppendArgs& a) {
  AttentionCall call{};
  AttentionArgs& t = call.args;
  t.q = a.q, t.key = a.key, t.value = a.value, t.out = a.out;
  t.cu_seqlens_q = a.cu_seqlens_q, t.seq_lens = a.seq_lens, t.block_table = a.block_tables;
  t.sinks = x.sinks ? a.wide_sinks : nullptr;
  t.q_token = int64_t{a.heads} * a.dim, t.q_head = t.out_head = a.dim, t.out_token = a.out_token;
  t.key_block = a.key_block, t.key_slot = a.key_slot, t.key_head = a.key_head;
  t.value_block = a.value_block, t.value_slot = a.value_slot, t.value_head = a.value_head;
  t.table_row = a.table_row, t.tokens = a.tokens, t.sequences = a.sequences, t.heads = a.heads;
  t.kv_heads = a.kv_heads, t.dim = a.dim, t.blocks = a.blocks, t.block_size = a.block_size;
  t.table_width = a.table_width, t.window = narrow32(x.window);
  t.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.dim)));
  call.kind = call.cache_kind = kind_of(op, "qkv", x.qkv);
  call.max_queries = likely_queries(a.tokens, a.sequences);
  call.vectors = rows_aligned(x.key_cache) && rows_aligned(x.value_cache) && rows_aligned(x.out);
  return call;
}

inline void append_run(const char* op, const AppendInputs& x) {
  const Launch on = launch_on(op, x.qkv);
  const int64_t tokens = x.qkv.size(0), heads = x.heads() + 2 * x.kv_heads();
  if (tokens == 0) return;
  const int64_t element = x.qkv.dtype().bits / 8;
  const int64_t q_bytes = (tokens * x.heads() * x.dim() * element + 255) / 256 * 256;
  const int64_t bytes = q_bytes + 4 * (x.sequences() + x.heads());
  char* space = static_cast<char*>(workspace(on, Scratch::kAppendQueries, bytes));
  const AppendArgs a = append_args(x, space, q_bytes);
  const int64_t parts = (heads + kAppendWarps - 1) / kAppendWarps;
  dispatch_float(op, "qkv", x.qkv, [&](auto tag) {
    run(on, append_attention_heads<decltype(tag)>, dim3(static_cast<unsigned>(tokens * parts)),
        dim3(kAppendWarps * kWarp), 0, a);
  });
  const AttentionCall call = append_call(op, x, a);
  if (!nothing_to_do(call)) attend(on, call);
}

void append_attention(Tensor qkv, Tensor key_cache, Tensor value_cache, Tensor seq_lens_decoder,
                      Tensor seq_lens_this_time, Tensor cu_seqlens_q, Tensor block_tables,
                      OptTensor rotary_embs, OptTensor qkv_bias, OptTensor q_norm_weight,
                      OptTensor k_norm_weight, OptTensor sinks, double rms_norm_eps,
                      bool use_neox_rotary_style, int64_t sliding_window, Tensor out) {
  const char* op = "append_attention";
  const AppendInputs x{qkv,
                       key_cache,
                       value_cache,
                       seq_lens_decoder,
                       seq_lens_this_time,
                       cu_seqlens_q,
                       block_tables,
                       rotary_embs,
                       qkv_bias,
                       q_norm_weight,
                       k_norm_weight,
                       sinks,
                       rms_norm_eps,
                       use_neox_rotary_style,
                       sliding_window,
                       out};
  Check{op, "qkv", qkv}.rank(2).inner_contiguous();
  kind_of(op, "qkv", qkv);  // refuses other types
  append_check_caches(op, x);
  append_check_options(op, x);
  append_check_table(op, x);
  append_check_lists(op, x);
  same_device(op, qkv,
              {key_cache, value_cache, seq_lens_decoder, seq_lens_this_time, cu_seqlens_q,
               block_tables, rotary_embs, qkv_bias, q_norm_weight, k_norm_weight, sinks, out});
  append_run(op, x);
}
FD_EXPORT(append_attention)

}  // namespace fd
#endif

#include "fd/attention_call.h"

namespace fd {
namespace {

const char* const kOp = "paged_attention";

void check_int32(const char* name, const Tensor& t) { Check{kOp, name, t}.dtype<int32_t>("int32"); }

void check_shapes(const Tensor& q, const Tensor& key_cache, const Tensor& value_cache,
                  const Tensor& cu_seqlens_q, const Tensor& seq_lens, const Tensor& block_table,
                  const OptTensor& sinks, const Tensor& out) {
  Check{kOp, "q", q}.rank(3).inner_contiguous();
  const bool coded = is<int8_t>(key_cache) || is<e4m3>(key_cache);
  const int64_t tail = coded ? attn::kScaleBytes : 0;
  Check{kOp, "key_cache", key_cache}.rank(4).dim(3, q.size(2) + tail).inner_contiguous();
  Check{kOp, "value_cache", value_cache}.same_shape(key_cache).same_dtype(key_cache);
  Check{kOp, "value_cache", value_cache}.inner_contiguous();
  check_int32("cu_seqlens_q", cu_seqlens_q);
  check_int32("seq_lens", seq_lens);
  check_int32("block_table", block_table);
  Check{kOp, "seq_lens", seq_lens}.rank(1).contiguous();
  Check{kOp, "cu_seqlens_q", cu_seqlens_q}.rank(1).dim(0, seq_lens.size(0) + 1).contiguous();
  Check{kOp, "block_table", block_table}.rank(2).dim(0, seq_lens.size(0)).inner_contiguous();
  if (sinks)
    Check{kOp, "sinks", sinks}.rank(1).dim(0, q.size(1)).contiguous().dtype<float>("float32");
  Check{kOp, "out", out}.same_shape(q).same_dtype(q).inner_contiguous();
}

void check_attributes(const Tensor& q, const Tensor& key_cache, int64_t window, double soft_cap) {
  const int64_t heads = q.size(1), dim = q.size(2), kv_heads = key_cache.size(2);
  if (dim % 8 != 0 || dim < 8 || dim > 512)
    fail("ValueError", kOp, ".q: want a head dimension that is a multiple of 8 up to 512, have ",
         dim);
  if (kv_heads == 0 || heads % kv_heads != 0)
    fail("ValueError", kOp, ".q: want a multiple of the cache's ", kv_heads, " heads, have ",
         heads);
  if (key_cache.size(1) < 1)
    fail("ValueError", kOp, ".key_cache: want a block size of at least 1, have ",
         key_cache.size(1));
  if (window < 0) fail("ValueError", kOp, ".window: want 0 (all) or more, have ", window);
  if (!(soft_cap >= 0)) fail("ValueError", kOp, ".soft_cap: want 0 (off) or more, have ", soft_cap);
}

void check_sequences(const attn::Call& call, int64_t tokens, int64_t max_blocks) {
  const int32_t* cu = call.cu_seqlens_q;
  if (cu[0] != 0) fail("ValueError", kOp, ".cu_seqlens_q: want 0 first, have ", cu[0]);
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int64_t n = static_cast<int64_t>(cu[s + 1]) - cu[s];
    if (n < 0 || cu[s + 1] > tokens)
      fail("ValueError", kOp, ".cu_seqlens_q: sequence ", s, ": want sums that rise to at most ",
           tokens, " tokens, have ", cu[s], " then ", cu[s + 1]);
    if (n == 0) continue;
    if (call.seq_lens[s] < n)
      fail("ValueError", kOp, ".seq_lens: sequence ", s, ": want at least its ", n,
           " queries, have ", call.seq_lens[s]);
    attn::check_blocks(kOp, "block_table", call, s, n, max_blocks);
  }
}

attn::Call call_of(const Tensor& q, const Tensor& key_cache, const Tensor& cu_seqlens_q,
                   const Tensor& seq_lens, const Tensor& block_table, const OptTensor& sinks,
                   double scale, int64_t window, double soft_cap, const Tensor& out) {
  attn::Call call{};
  call.sequences = seq_lens.size(0), call.heads = q.size(1), call.kv_heads = key_cache.size(2);
  call.dim = q.size(2), call.blocks = key_cache.size(0), call.block_size = key_cache.size(1);
  call.table_stride = block_table.stride(0), call.window = window;
  call.scale = static_cast<float>(scale), call.soft_cap = static_cast<float>(soft_cap);
  call.cu_seqlens_q = cu_seqlens_q.data<int32_t>(), call.seq_lens = seq_lens.data<int32_t>();
  call.block_table = block_table.data<int32_t>();
  call.sinks = sinks ? sinks.data<float>() : nullptr;
  dispatch_float(kOp, "q", q, [&](auto tag) {
    using Q = decltype(tag);
    constexpr int64_t bytes = sizeof(Q);
    call.q = q.data<char>(), call.out = out.data<char>();
    call.q_token = q.stride(0) * bytes, call.q_head = q.stride(1) * bytes;
    call.out_token = out.stride(0) * bytes, call.out_head = out.stride(1) * bytes;
    call.widen = attn::widen_row<Q>, call.narrow = attn::narrow_row<Q>;
  });
  return call;
}

}  // namespace

void paged_attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                     Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                     int64_t window, double soft_cap, Tensor out) {
  check_shapes(q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks, out);
  check_attributes(q, key_cache, window, soft_cap);
  const attn::Call call = call_of(q, key_cache, cu_seqlens_q, seq_lens, block_table, sinks, scale,
                                  window, soft_cap, out);
  check_sequences(call, q.size(0), block_table.size(1));
  if (is<int8_t>(key_cache))
    return attn::run(call, attn::pool<attn::q8>(key_cache), attn::pool<attn::q8>(value_cache));
  if (is<e4m3>(key_cache))
    return attn::run(call, attn::pool<e4m3>(key_cache), attn::pool<e4m3>(value_cache));
  dispatch_float(kOp, "key_cache", key_cache, [&](auto tag) {
    using T = decltype(tag);
    attn::run(call, attn::pool<T>(key_cache), attn::pool<T>(value_cache));
  });
}

FD_EXPORT(paged_attention)

}  // namespace fd

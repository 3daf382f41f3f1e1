#include "fd/attention_call.h"
#include "fd/norm.h"
#include "fd/parallel.h"
#include "fd/rope.h"
#include "fd/scratch.h"

namespace fd {
namespace {

const char* const kOp = "append_attention";
constexpr int64_t kMaxDim = 512;

// The tensors of one call under their names, and the sizes that follow from them.
struct Inputs {
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
  int64_t past(int64_t s) const { return seq_lens_decoder.data<int32_t>()[s]; }
  int64_t queries(int64_t s) const { return seq_lens_this_time.data<int32_t>()[s]; }
  int64_t first(int64_t s) const { return cu_seqlens_q.data<int32_t>()[s]; }
  // Rotated dimensions of a head: all, or twice the table's width where that is less.
  int64_t rotary_dim() const { return std::min(dim(), 2 * rotary_embs.size(4)); }
};

void check_caches(const Inputs& x) {
  Check{kOp, "key_cache", x.key_cache}.rank(4).same_dtype(x.qkv).inner_contiguous();
  Check{kOp, "value_cache", x.value_cache}.same_shape(x.key_cache).same_dtype(x.qkv);
  Check{kOp, "value_cache", x.value_cache}.inner_contiguous();
  const int64_t dim = x.dim(), width = x.qkv.size(1);
  if (dim % 8 != 0 || dim < 8 || dim > kMaxDim)
    fail("ValueError", kOp, ".key_cache: want a head dimension that is a multiple of 8 up to 512, ",
         "have ", dim);
  if (x.block_size() < 1 || x.kv_heads() < 1)
    fail("ValueError", kOp, ".key_cache: want at least one head and slot, have ",
         shape_text(x.key_cache));
  if (width % dim != 0 || x.heads() < 1 || x.heads() % x.kv_heads() != 0)
    fail("ValueError", kOp, ".qkv: want (heads + 2 * ", x.kv_heads(), ") * ", dim,
         " columns, heads a multiple of ", x.kv_heads(), ", have ", width);
  Check{kOp, "out", x.out}.rank(2).dim(0, x.qkv.size(0)).dim(1, x.heads() * dim);
  Check{kOp, "out", x.out}.same_dtype(x.qkv).inner_contiguous();
}

void check_options(const Inputs& x) {
  if (x.qkv_bias)
    Check{kOp, "qkv_bias", x.qkv_bias}.rank(1).dim(0, x.qkv.size(1)).same_dtype(x.qkv).contiguous();
  if (x.sinks)
    Check{kOp, "sinks", x.sinks}.rank(1).dim(0, x.heads()).same_dtype(x.qkv).contiguous();
  if (static_cast<bool>(x.q_norm_weight) != static_cast<bool>(x.k_norm_weight))
    fail("ValueError", kOp, ".k_norm_weight: want both norm weights or none, have one");
  if (x.q_norm_weight) {
    Check{kOp, "q_norm_weight", x.q_norm_weight}.rank(1).dim(0, x.dim()).dtype<float>("float32");
    Check{kOp, "k_norm_weight", x.k_norm_weight}.rank(1).dim(0, x.dim()).dtype<float>("float32");
    Check{kOp, "q_norm_weight", x.q_norm_weight}.contiguous();
    Check{kOp, "k_norm_weight", x.k_norm_weight}.contiguous();
  }
  if (!(x.eps >= 0)) fail("ValueError", kOp, ".rms_norm_eps: want >= 0, have ", x.eps);
  if (x.window < 0)
    fail("ValueError", kOp, ".sliding_window: want 0 (all) or more, have ", x.window);
}

void check_table(const Inputs& x) {
  if (!x.rotary_embs) return;
  Check{kOp, "rotary_embs", x.rotary_embs}.rank(5).dim(0, 2).dim(1, 1).dim(3, 1).contiguous();
  Check{kOp, "rotary_embs", x.rotary_embs}.dtype<float>("float32");
  const int64_t width = x.rotary_embs.size(4);
  if (x.neox ? width > x.dim() : 2 * width != x.dim())
    fail("ValueError", kOp, ".rotary_embs: want ", x.neox ? "at most " : "half of ", x.dim(),
         " columns, have ", width);
}

void check_lists(const Inputs& x) {
  for (const auto& [name, t] : {std::pair("seq_lens_decoder", x.seq_lens_decoder),
                                std::pair("seq_lens_this_time", x.seq_lens_this_time),
                                std::pair("cu_seqlens_q", x.cu_seqlens_q)})
    Check{kOp, name, t}.dtype<int32_t>("int32").contiguous();
  Check{kOp, "seq_lens_decoder", x.seq_lens_decoder}.numel(x.sequences());
  Check{kOp, "cu_seqlens_q", x.cu_seqlens_q}.numel(x.sequences() + 1);
  Check{kOp, "block_tables", x.block_tables}.rank(2).dim(0, x.sequences()).inner_contiguous();
  Check{kOp, "block_tables", x.block_tables}.dtype<int32_t>("int32");
}

void check_sequence(const Inputs& x, const attn::Call& call, int64_t s) {
  const int64_t n = x.queries(s), past = x.past(s), begin = x.first(s);
  if (n < 0 || begin + n > x.qkv.size(0) || x.first(s + 1) != begin + n)
    fail("ValueError", kOp, ".cu_seqlens_q: sequence ", s, ": want ", begin, " + ", n,
         " within the tokens, have ", x.first(s + 1));
  if (n == 0) return;
  if (past < 0)
    fail("ValueError", kOp, ".seq_lens_decoder: sequence ", s, ": want 0 or more, have ", past);
  if (x.rotary_embs && past + n > x.rotary_embs.size(2))
    fail("ValueError", kOp, ".rotary_embs: sequence ", s, ": want ", past + n, " positions, have ",
         x.rotary_embs.size(2));
  attn::check_blocks(kOp, "block_tables", call, s, n, x.block_tables.size(1));
}

// One head: bias, rotation, norm, in float32.
struct Prepare {
  const Inputs& x;
  const float *cos, *sin;

  template <typename T>
  void operator()(const T* from, const T* bias, int64_t position, const float* norm, bool rotates,
                  float* head) const {
    const int64_t dim = x.dim(), half = rotates ? x.rotary_dim() / 2 : 0;
    attn::widen_row<T>(from, dim, 1.0f, head);
    for (int64_t d = 0; d < dim && bias != nullptr; ++d) head[d] += to_float(bias[d]);
    const int64_t row = half > 0 ? position * x.rotary_embs.size(4) : 0;
    if (half > 0 && x.neox) rotate_neox(head, cos + row, sin + row, half);
    if (half > 0 && !x.neox) rotate_interleaved(head, cos + row, sin + row, half);
    if (norm != nullptr) rms_row(head, norm, static_cast<float>(x.eps), dim, head);
  }
};

template <typename T>
T* cache_row(const Inputs& x, const Tensor& cache, int64_t s, int64_t position, int64_t head) {
  const int32_t* table = x.block_tables.data<int32_t>() + s * x.block_tables.stride(0);
  return cache.data<T>() + table[position / x.block_size()] * cache.stride(0) +
         head * cache.stride(1) + position % x.block_size() * cache.stride(2);
}

// Token `t` at `position` of sequence s: queries to q, keys and values to the caches.
template <typename T>
void token(const Inputs& x, const Prepare& prepare, int64_t s, int64_t t, int64_t position, T* q) {
  const int64_t dim = x.dim(), heads = x.heads(), groups = x.kv_heads();
  const T* from = x.qkv.data<T>() + t * x.qkv.stride(0);
  const T* bias = x.qkv_bias ? x.qkv_bias.data<T>() : nullptr;
  const float* norms[2] = {x.q_norm_weight ? x.q_norm_weight.data<float>() : nullptr,
                           x.k_norm_weight ? x.k_norm_weight.data<float>() : nullptr};
  float head[kMaxDim];
  for (int64_t h = 0; h < heads + 2 * groups; ++h) {
    const int kind = h < heads ? 0 : h < heads + groups ? 1 : 2;  // query, key, value
    const bool rotates = kind < 2 && x.rotary_embs;
    prepare(from + h * dim, bias ? bias + h * dim : bias, position,
            kind < 2 ? norms[kind] : nullptr, rotates, head);
    T* to = kind == 0   ? q + (t * heads + h) * dim
            : kind == 1 ? cache_row<T>(x, x.key_cache, s, position, h - heads)
                        : cache_row<T>(x, x.value_cache, s, position, h - heads - groups);
    attn::narrow_row<T>(head, dim, 1.0f, to);
  }
}

template <typename T>
void prepare_tokens(const Inputs& x, T* q) {
  const float* table = x.rotary_embs ? x.rotary_embs.data<float>() : nullptr;
  const int64_t half_table = x.rotary_embs ? x.rotary_embs.numel() / 2 : 0;
  const Prepare prepare{x, table, table + half_table};
  for (int64_t s = 0; s < x.sequences(); ++s)
    parallel_for(x.queries(s), 1 + 16384 / x.qkv.size(1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) token(x, prepare, s, x.first(s) + i, x.past(s) + i, q);
    });
}

attn::Call call_of(const Inputs& x, int32_t* seq_lens, float* sinks) {
  attn::Call call{};
  call.sequences = x.sequences(), call.heads = x.heads(), call.kv_heads = x.kv_heads();
  call.dim = x.dim(), call.blocks = x.key_cache.size(0), call.block_size = x.block_size();
  call.table_stride = x.block_tables.stride(0), call.window = x.window;
  call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(x.dim())));
  call.cu_seqlens_q = x.cu_seqlens_q.data<int32_t>(), call.seq_lens = seq_lens;
  call.block_table = x.block_tables.data<int32_t>();
  for (int64_t s = 0; s < x.sequences(); ++s)
    seq_lens[s] = static_cast<int32_t>(x.past(s) + x.queries(s));
  if (x.sinks) call.sinks = sinks;
  return call;
}

// The caches are [blocks, heads, block_size, dim]; the engine counts slots before heads.
template <typename T>
attn::Pool<T> pool(const Tensor& t) {
  return {t.data<T>(), t.stride(0), t.stride(2), t.stride(1)};
}

template <typename T>
void compute(const Inputs& x, attn::Call call, float* sinks, float* space) {
  T* q = reinterpret_cast<T*>(space);
  prepare_tokens(x, q);
  if (x.sinks) attn::widen_row<T>(x.sinks.data<T>(), x.heads(), 1.0f, sinks);
  T* out = x.out.data<T>();
  for (int64_t t = x.first(x.sequences()); t < x.out.size(0); ++t)  // padding
    std::fill_n(out + t * x.out.stride(0), x.out.size(1), T{});
  call.q = reinterpret_cast<const char*>(q), call.out = x.out.data<char>();
  call.q_head = call.out_head = x.dim() * sizeof(T);
  call.q_token = x.heads() * call.q_head;
  call.out_token = x.out.stride(0) * static_cast<int64_t>(sizeof(T));
  call.widen = attn::widen_row<T>, call.narrow = attn::narrow_row<T>;
  attn::run(call, pool<T>(x.key_cache), pool<T>(x.value_cache));
}

}  // namespace

void append_attention(Tensor qkv, Tensor key_cache, Tensor value_cache, Tensor seq_lens_decoder,
                      Tensor seq_lens_this_time, Tensor cu_seqlens_q, Tensor block_tables,
                      OptTensor rotary_embs, OptTensor qkv_bias, OptTensor q_norm_weight,
                      OptTensor k_norm_weight, OptTensor sinks, double rms_norm_eps,
                      bool use_neox_rotary_style, int64_t sliding_window, Tensor out) {
  const Inputs x{qkv,
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
  Check{kOp, "qkv", qkv}.rank(2).inner_contiguous();
  check_caches(x);
  check_options(x);
  check_table(x);
  check_lists(x);
  // Rotated queries, lengths and wide sinks: `qkv` stays as it is, and no caller knows their sizes.
  const int64_t q_floats = qkv.size(0) * x.heads() * x.dim(), padded = x.heads() + kLanes;
  float* space = scratch<3>(q_floats + padded + x.sequences());
  float* sinks_space = space + q_floats;
  int32_t* seq_lens = reinterpret_cast<int32_t*>(sinks_space + padded);
  const attn::Call call = call_of(x, seq_lens, sinks_space);
  if (x.first(0) != 0) fail("ValueError", kOp, ".cu_seqlens_q: want 0 first, have ", x.first(0));
  for (int64_t s = 0; s < x.sequences(); ++s) check_sequence(x, call, s);
  dispatch_float(kOp, "qkv", qkv,
                 [&](auto tag) { compute<decltype(tag)>(x, call, sinks_space, space); });
}

FD_EXPORT(append_attention)

}  // namespace fd

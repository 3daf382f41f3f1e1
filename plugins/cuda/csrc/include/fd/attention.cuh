// Device side of every attention kernel: one call's arguments, who owns a token, masks, logits.
#pragma once
#include "fd/types.h"

namespace fd {

// A step without its element types; strides in elements. As `paged_attention` documents them; sinks
// may be null, window 0 means all keys.
struct AttentionArgs {
  const void *q, *key, *value;
  void* out;
  const int32_t *cu_seqlens_q, *seq_lens, *block_table;
  const float* sinks;
  int64_t q_token, q_head, out_token, out_head;
  int64_t key_block, key_slot, key_head, value_block, value_slot, value_head, table_row;
  int32_t tokens, sequences, heads, kv_heads, dim, blocks, block_size, table_width, window;
  float scale, soft_cap;
};

// A row of codes is followed by its scale, float32.
constexpr int kScaleBytes = 4;

constexpr float kLog2e = 1.4426950408889634f;

// The sequence that token `t` belongs to, -1 for padding: sequences may be empty.
__device__ __forceinline__ int attention_owner(const AttentionArgs& a, int t) {
  int low = 0, high = a.sequences;  // cu[low] <= t < cu[high], if t has an owner
  if (high == 0 || t >= a.cu_seqlens_q[high]) return -1;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (a.cu_seqlens_q[middle] <= t ? low : high) = middle;
  }
  return low;
}

// The first key that a query at `position` sees.
__device__ __forceinline__ int attention_first(const AttentionArgs& a, int position) {
  return a.window > 0 && position >= a.window ? position + 1 - a.window : 0;
}

// The block of the key at `position`. Lists are not checked on the host; an id outside the pool
// reads some other block rather than memory of others.
__device__ __forceinline__ int64_t attention_block(const AttentionArgs& a, int sequence, int at) {
  const unsigned column = min(static_cast<unsigned>(at), static_cast<unsigned>(a.table_width - 1));
  const unsigned id = a.block_table[sequence * a.table_row + column];
  return min(id, static_cast<unsigned>(a.blocks - 1));
}

// Whether logits are anything but products times a positive number: where they are that, the
// maximum of the products is the maximum's product.
__host__ __device__ __forceinline__ bool attention_bent(const AttentionArgs& a) {
  return a.soft_cap > 0.f || !(a.scale > 0.f);
}

// 2^x within two units in the last place; 0 below 2^-126.
__device__ __forceinline__ float attention_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A product's logit in base 2, so that exp2 gives the weight; cap * tanh(y) as 1 - 2 / (e^2y + 1),
// off by a few 1e-7 of the cap at most.
__device__ __forceinline__ float attention_capped(const AttentionArgs& a, float product) {
  const float y = attention_exp2(__fdividef(product * (2.f * kLog2e * a.scale), a.soft_cap));
  return a.soft_cap * kLog2e * (1.f - __fdividef(2.f, y + 1.f));
}
__device__ __forceinline__ float attention_logit(const AttentionArgs& a, float product) {
  return a.soft_cap > 0.f ? attention_capped(a, product) : product * (a.scale * kLog2e);
}

// What scales a row's old sums when its maximum rises; rows that have seen no key stay at zero.
__device__ __forceinline__ float attention_rescale(float before, float now) {
  return now == -INFINITY ? 1.f : attention_exp2(before - now);
}

// What turns a head's weighted sum into its mean: one over the weights' sum, the sink's included.
__device__ __forceinline__ float attention_scale(const AttentionArgs& a, int head, float top,
                                                 float total) {
  const float sink = a.sinks != nullptr ? a.sinks[head] * kLog2e : -INFINITY;
  const float high = fmaxf(top, sink), old = attention_rescale(top, high);
  total = total * old + (a.sinks != nullptr ? attention_exp2(sink - high) : 0.f);
  return total == 0.f ? 0.f : __fdividef(old, total);
}

}  // namespace fd

// The tensors of the rotary embeddings that are ops of their own.
#pragma once
#include "fd/checks/vectors.h"

namespace fd {

inline void check_rotary_positions(const char* op, const Tensor& input_ids,
                                   const Tensor& position_ids, const Tensor& head_dim_shape_tensor,
                                   int64_t prompt_num, const Tensor& out) {
  Check{op, "input_ids", input_ids}.rank(2);
  const int64_t batch = input_ids.size(0), length = input_ids.size(1);
  const Check positions{op, "position_ids", position_ids};
  positions.rank(2).dim(0, batch).dtype<float>("float32").contiguous();
  Check{op, "head_dim_shape_tensor", head_dim_shape_tensor}.rank(1);
  const int64_t dim = head_dim_shape_tensor.size(0);
  if (dim % 2 != 0)
    fail("ValueError", op, ".head_dim_shape_tensor: want an even length, have ", dim);
  if (prompt_num < 0 || position_ids.size(1) < length + prompt_num)
    fail("ValueError", op, ".position_ids: want at least ", length, " + prompt_num ", prompt_num,
         " columns, have ", shape_text(position_ids));
  Check{op, "out", out}.rank(5).dim(0, 2).dim(1, batch).dim(2, 1).dim(3, length).dim(4, dim);
  Check{op, "out", out}.dtype<float>("float32").contiguous();
}

inline void check_neox_table(const char* op, const char* arg, const Tensor& table, int64_t tokens,
                             int64_t head_dim) {
  const Check check{op, arg, table};
  check.rank(3).dim(0, tokens).dim(1, 1).dim(2, head_dim).dtype<float>("float32").contiguous();
}

inline void check_neox_out(const char* op, const char* arg, const Tensor& out, const Tensor& qkv,
                           int64_t heads, int64_t head_dim) {
  const Check check{op, arg, out};
  check.rank(3).dim(0, qkv.size(0)).dim(1, heads).dim(2, head_dim).same_dtype(qkv).contiguous();
}

inline void check_neox_rope(const char* op, const Tensor& qkv, const Tensor& cos_emb,
                            const Tensor& sin_emb, int64_t num_heads, int64_t head_dim,
                            const Tensor& q, const Tensor& k, const Tensor& v) {
  if (num_heads <= 0) fail("ValueError", op, ".num_heads: want > 0, have ", num_heads);
  if (head_dim <= 0 || head_dim % 2 != 0)
    fail("ValueError", op, ".head_dim: want a positive even number, have ", head_dim);
  Check{op, "qkv", qkv}.rank(2).dim(1, 3 * num_heads * head_dim).inner_contiguous();
  check_neox_table(op, "cos_emb", cos_emb, qkv.size(0), head_dim);
  check_neox_table(op, "sin_emb", sin_emb, qkv.size(0), head_dim);
  check_neox_out(op, "q", q, qkv, num_heads, head_dim);
  check_neox_out(op, "k", k, qkv, num_heads, head_dim);
  check_neox_out(op, "v", v, qkv, num_heads, head_dim);
}

// Heads of tokens, [tokens, heads * head_size] or [tokens, heads, head_size].
struct HeadRows {
  int64_t count, token_stride, head_stride;
};

inline HeadRows head_rows(const char* op, const char* arg, const Tensor& t, int64_t tokens,
                          int64_t head_size) {
  const Check check{op, arg, t};
  if (t.ndim() != 3) check.rank(2);
  check.dim(0, tokens).inner_contiguous();
  if (t.ndim() == 3) {
    check.dim(2, head_size);
    return {t.size(1), t.stride(0), t.stride(1)};
  }
  if (t.size(1) % head_size != 0)
    fail("ValueError", op, ".", arg, ": want rows of a multiple of head_size ", head_size,
         ", have ", shape_text(t));
  return {t.size(1) / head_size, t.stride(0), head_size};
}

// Query's and key's heads of fused_rotary_position_encoding, whose positions lie in position_ids.
struct RotatedHeads {
  HeadRows query, key;
};

inline RotatedHeads check_rotated(const char* op, const Tensor& query, const Tensor& key,
                                  const Tensor& position_ids, const Tensor& cos_sin_cache,
                                  int64_t head_size) {
  if (head_size <= 0) fail("ValueError", op, ".head_size: want > 0, have ", head_size);
  Check{op, "position_ids", position_ids}.rank(1);
  check_indices(op, "position_ids", position_ids);
  const int64_t tokens = position_ids.numel();
  const RotatedHeads heads{head_rows(op, "query", query, tokens, head_size),
                           head_rows(op, "key", key, tokens, head_size)};
  Check{op, "key", key}.same_dtype(query);
  const Check table{op, "cos_sin_cache", cos_sin_cache};
  table.rank(2).inner_contiguous();
  if (!is<float>(cos_sin_cache)) table.same_dtype(query);
  if (cos_sin_cache.size(1) % 2 != 0 || cos_sin_cache.size(1) > head_size)
    fail("ValueError", op, ".cos_sin_cache: want an even rotary dimension <= head_size ", head_size,
         ", have ", shape_text(cos_sin_cache));
  return heads;
}

}  // namespace fd

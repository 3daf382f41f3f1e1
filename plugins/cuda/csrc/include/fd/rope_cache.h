// Host side of rope_cache.cuh: the checks of the op rope_and_cache and its arguments for kernels.
#pragma once
#include "fd/kv_write.h"
#include "fd/norm.h"
#include "fd/rope_cache.cuh"
#include "fd/rowwise.h"

namespace fd {

inline void rope_pool(const char* op, const char* arg, const Tensor& cache, const Tensor& like,
                      const Tensor& qkv) {
  const Check check{op, arg, cache};
  check.rank(4).inner_contiguous().same_shape(like).same_dtype(like);
  const bool rounds = is<float>(qkv) && (is<bf16>(cache) || is<f16>(cache));
  if (!rounds) check.same_dtype(qkv);
  if (cache.size(3) <= 0 || cache.size(3) % 8 != 0)
    fail("ValueError", op, ".", arg, ": want a head dimension that is a multiple of 8, have ",
         shape_text(cache));
}

inline void rope_table(const char* op, const Tensor& table, int64_t dim) {
  Check{op, "cos_sin_cache", table}.rank(2).dtype<float>("float32").inner_contiguous();
  if (table.size(1) % 2 != 0 || table.size(1) > dim)
    fail("ValueError", op, ".cos_sin_cache: want an even rotary dimension <= ", dim, ", have ",
         shape_text(table));
}

inline void rope_weights(const char* op, const OptTensor& q, const OptTensor& k, const Tensor& qkv,
                         int64_t dim) {
  if (static_cast<bool>(q) != static_cast<bool>(k))
    fail("ValueError", op, ".k_norm_weight: want both weights or neither, have one");
  if (!q) return;
  Check{op, "q_norm_weight", q}.rank(1).dim(0, dim).same_dtype(qkv).contiguous();
  Check{op, "k_norm_weight", k}.rank(1).dim(0, dim).same_dtype(qkv).contiguous();
}

// Query heads: what qkv's rows hold beyond the keys and values.
inline int rope_heads(const char* op, const Tensor& qkv, int64_t kv_heads, int64_t dim) {
  Check{op, "qkv", qkv}.rank(2).inner_contiguous();
  const int64_t rest = qkv.size(1) - 2 * kv_heads * dim;
  if (rest < 0 || rest % dim != 0)
    fail("ValueError", op, ".qkv: want rows of heads of ", dim, ", ", 2 * kv_heads,
         " of them keys and values, have ", shape_text(qkv));
  return static_cast<int>(rest / dim);
}

// Lanes of a head for the vectorised kernel; 0 where it does not fit.
template <typename T, typename C>
int rope_lanes(const RopeAndCache<T, C>& all) {
  constexpr int N = kPack<T>;
  const int lanes = all.dim / (2 * N);
  const auto pool = [&](const CachePool& p, const C* data) {
    constexpr int64_t item = sizeof(C), want = N * item < 16 ? N * item : 16;
    return ((p.block_stride | p.token_stride | p.head_stride) * item) % want == 0 &&
           reinterpret_cast<uintptr_t>(data) % want == 0;
  };
  const bool turn = all.neox ? 2 * all.half == all.dim : 2 * all.half % N == 0;
  const bool fits = all.dim % (2 * N) == 0 && lanes == pow2_lanes(lanes) && lanes <= kWarp &&
                    turn &&
                    packable<T>(all.dim, {all.step}, {all.qkv, all.q_weight, all.k_weight}) &&
                    packable<float>(all.half, {all.table_step}, {all.table}) &&
                    pool(all.key_pool, all.key) && pool(all.value_pool, all.value);
  return fits ? lanes : 0;
}

// The arguments of the op `rope_and_cache`, which others take among theirs.
struct RopeTensors {
  Tensor qkv, position_ids, cos_sin_cache;
  OptTensor q_norm_weight, k_norm_weight;
  double eps;
  Tensor key_cache, value_cache, slot_mapping;
  bool is_neox;

  int64_t tokens() const { return qkv.size(0); }
  int64_t kv_heads() const { return key_cache.size(2); }
  int64_t dim() const { return key_cache.size(3); }
};

// The op itself, for others that stand for it too.
void rope_and_cache_all(const char* op, const RopeTensors& t);

// What is left of them once they are checked: the index vectors.
struct RopeIds {
  int q_heads;
  Ids positions, slots;
};

inline RopeIds check_rope(const char* op, const RopeTensors& t) {
  rope_pool(op, "key_cache", t.key_cache, t.key_cache, t.qkv);
  rope_pool(op, "value_cache", t.value_cache, t.key_cache, t.qkv);
  const int q_heads = rope_heads(op, t.qkv, t.kv_heads(), t.dim());
  Check{op, "position_ids", t.position_ids}.rank(1).dim(0, t.tokens());
  const Ids positions = ids_of(op, "position_ids", t.position_ids);
  rope_table(op, t.cos_sin_cache, t.dim());
  rope_weights(op, t.q_norm_weight, t.k_norm_weight, t.qkv, t.dim());
  check_eps(op, t.eps);
  const Ids slots = slots_of(op, t.slot_mapping, t.tokens());
  same_device(op, t.qkv,
              {t.position_ids, t.cos_sin_cache, t.q_norm_weight, t.k_norm_weight, t.key_cache,
               t.value_cache, t.slot_mapping});
  return {q_heads, positions, slots};
}

// With FD_CUDA_BLOCKING=1, what the ids hold as well.
inline void check_rope_ids(const Launch& on, const RopeTensors& t, const RopeIds& ids) {
  check_range(on, "position_ids", ids.positions, 0, t.cos_sin_cache.size(0));
  check_slots(on, ids.slots, t.key_cache.size(0) * t.key_cache.size(1));
}

template <typename T, typename C>
RopeAndCache<T, C> rope_call(const RopeTensors& t, const RopeIds& ids) {
  RopeAndCache<T, C> all{};
  all.qkv = t.qkv.data<T>(), all.step = t.qkv.stride(0), all.tokens = t.tokens();
  all.positions = ids.positions, all.table = t.cos_sin_cache.data<float>();
  all.table_step = t.cos_sin_cache.stride(0), all.rows = t.cos_sin_cache.size(0);
  if (t.q_norm_weight)
    all.q_weight = t.q_norm_weight.data<T>(), all.k_weight = t.k_norm_weight.data<T>();
  all.key = t.key_cache.data<C>(), all.value = t.value_cache.data<C>();
  all.key_pool = cache_pool(t.key_cache), all.value_pool = cache_pool(t.value_cache);
  all.slots = ids.slots.wide, all.q_heads = ids.q_heads;
  all.kv_heads = static_cast<int>(t.kv_heads()), all.dim = static_cast<int>(t.dim());
  all.half = static_cast<int>(t.cos_sin_cache.size(1) / 2);
  all.eps = static_cast<float>(t.eps), all.neox = t.is_neox;
  return all;
}

}  // namespace fd

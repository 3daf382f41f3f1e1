#include <cstring>

#include "fd/ids.h"
#include "fd/norm.h"
#include "fd/parallel.h"
#include "fd/rope.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

constexpr const char* kOp = "rope_and_cache";

// A pool [blocks, block_size, heads, dim]; strides in elements.
template <typename C>
struct Pool {
  C* data;
  int64_t size, block_stride, token_stride, head_stride;

  explicit Pool(const Tensor& t)
      : data(t.data<C>()),
        size(t.size(1)),
        block_stride(t.stride(0)),
        token_stride(t.stride(1)),
        head_stride(t.stride(2)) {}
  C* at(int64_t slot, int64_t head) const {
    return data + slot / size * block_stride + slot % size * token_stride + head * head_stride;
  }
};

struct Heads {
  int64_t q, kv, dim;
};

// Equal types keep their bits, others are rounded once.
template <typename T, typename C>
void put(const T* from, int64_t n, C* to) {
  if constexpr (std::is_same_v<T, C>) {
    std::memcpy(to, from, n * sizeof(T));
  } else {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store16(to + i, load16(from + i));
    store_tail(to + i, load_tail(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
  }
}

struct Turn {
  const float* cos;
  int64_t half;
  bool neox;
  float eps;
};

template <typename T>
void head(T* x, const T* weight, int64_t dim, const Turn& turn) {
  if (weight != nullptr) rms_row(x, weight, turn.eps, dim, x);
  if (turn.neox)
    rotate_neox(x, turn.cos, turn.cos + turn.half, turn.half);
  else
    rotate_interleaved(x, turn.cos, turn.cos + turn.half, turn.half);
}

// One token: q | k | v.
template <typename T, typename C>
void token(T* row, const T* q_weight, const T* k_weight, const Heads& heads, const Turn& turn,
           const Pool<C>& keys, const Pool<C>& values, int64_t slot) {
  const int64_t dim = heads.dim;
  for (int64_t h = 0; h < heads.q; ++h) head(row + h * dim, q_weight, dim, turn);
  T *k = row + heads.q * dim, *v = k + heads.kv * dim;
  for (int64_t h = 0; h < heads.kv; ++h) {
    head(k + h * dim, k_weight, dim, turn);
    if (slot < 0) continue;
    put(k + h * dim, dim, keys.at(slot, h));
    put(v + h * dim, dim, values.at(slot, h));
  }
}

void check_pool(const char* arg, const Tensor& cache, const Tensor& like, const Tensor& qkv) {
  const Check check{kOp, arg, cache};
  check.rank(4).inner_contiguous().same_shape(like).same_dtype(like);
  const bool rounds = is<float>(qkv) && (is<bf16>(cache) || is<f16>(cache));
  if (!rounds) check.same_dtype(qkv);
  if (cache.size(3) <= 0 || cache.size(3) % 8 != 0)
    fail("ValueError", kOp, ".", arg, ": want a head dimension that is a multiple of 8, have ",
         shape_text(cache));
}

void check_table(const Tensor& table, int64_t dim) {
  Check{kOp, "cos_sin_cache", table}.rank(2).dtype<float>("float32").inner_contiguous();
  if (table.size(1) % 2 != 0 || table.size(1) > dim)
    fail("ValueError", kOp, ".cos_sin_cache: want an even rotary dimension <= ", dim, ", have ",
         shape_text(table));
}

void check_weights(const OptTensor& q, const OptTensor& k, const Tensor& qkv, int64_t dim) {
  if (static_cast<bool>(q) != static_cast<bool>(k))
    fail("ValueError", kOp, ".k_norm_weight: want both weights or neither, have one");
  if (!q) return;
  Check{kOp, "q_norm_weight", q}.rank(1).dim(0, dim).same_dtype(qkv).contiguous();
  Check{kOp, "k_norm_weight", k}.rank(1).dim(0, dim).same_dtype(qkv).contiguous();
}

Heads heads_of(const Tensor& qkv, const Tensor& cache) {
  Check{kOp, "qkv", qkv}.rank(2).inner_contiguous();
  const int64_t kv = cache.size(2), dim = cache.size(3), rest = qkv.size(1) - 2 * kv * dim;
  if (rest < 0 || rest % dim != 0)
    fail("ValueError", kOp, ".qkv: want rows of heads of ", dim, ", ", 2 * kv,
         " of them keys and values, have ", shape_text(qkv));
  return {rest / dim, kv, dim};
}

const int64_t* check_slots(const Tensor& slot_mapping, int64_t tokens, int64_t below) {
  const Check check{kOp, "slot_mapping", slot_mapping};
  check.dtype<int64_t>("int64").rank(1).dim(0, tokens).contiguous();
  const int64_t* slot = slot_mapping.data<int64_t>();
  for (int64_t t = 0; t < tokens; ++t)
    if (slot[t] >= below)
      fail("ValueError", kOp, ".slot_mapping: token ", t, ": want a slot below ", below, ", have ",
           slot[t]);
  return slot;
}

// f(T{}, C{}) for the element types of qkv and the caches.
template <typename F>
void dispatch_types(const Tensor& qkv, const Tensor& cache, F&& f) {
  dispatch_float(kOp, "qkv", qkv, [&](auto tag) {
    if constexpr (std::is_same_v<decltype(tag), float>) {
      if (is<bf16>(cache)) return f(tag, bf16{});
      if (is<f16>(cache)) return f(tag, f16{});
    }
    f(tag, tag);
  });
}

}  // namespace

void rope_and_cache(Tensor qkv, Tensor position_ids, Tensor cos_sin_cache, OptTensor q_norm_weight,
                    OptTensor k_norm_weight, double eps, Tensor key_cache, Tensor value_cache,
                    Tensor slot_mapping, bool is_neox) {
  check_pool("key_cache", key_cache, key_cache, qkv);
  check_pool("value_cache", value_cache, key_cache, qkv);
  const Heads heads = heads_of(qkv, key_cache);
  const int64_t tokens = qkv.size(0), step = qkv.stride(0), table_step = cos_sin_cache.stride(0);
  Check{kOp, "position_ids", position_ids}.rank(1).dim(0, tokens);
  const Ids positions = ids_of(kOp, "position_ids", position_ids);
  check_table(cos_sin_cache, heads.dim);
  check_weights(q_norm_weight, k_norm_weight, qkv, heads.dim);
  check_eps(kOp, eps);
  check_range(kOp, "position_ids", positions, 0, cos_sin_cache.size(0));
  const int64_t* slots = check_slots(slot_mapping, tokens, key_cache.size(0) * key_cache.size(1));
  dispatch_types(qkv, key_cache, [&](auto tag, auto cache_tag) {
    using T = decltype(tag);
    using C = decltype(cache_tag);
    const Pool<C> keys(key_cache), values(value_cache);
    const T* q_weight = q_norm_weight ? q_norm_weight.data<T>() : nullptr;
    const T* k_weight = k_norm_weight ? k_norm_weight.data<T>() : nullptr;
    T* rows = qkv.data<T>();
    const float* table = cos_sin_cache.data<float>();
    const int64_t half = cos_sin_cache.size(1) / 2;
    parallel_for(tokens, row_grain(qkv.size(1)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const Turn turn{table + positions[t] * table_step, half, is_neox, static_cast<float>(eps)};
        token(rows + t * step, q_weight, k_weight, heads, turn, keys, values, slots[t]);
      }
    });
  });
}

FD_EXPORT(rope_and_cache)

}  // namespace fd

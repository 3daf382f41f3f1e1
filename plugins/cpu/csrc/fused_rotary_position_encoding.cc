#include "fd/ids.h"
#include "fd/parallel.h"
#include "fd/rope.h"

namespace fd {
namespace {

constexpr const char* kOp = "fused_rotary_position_encoding";

// [tokens, heads * head_size] or [tokens, heads, head_size] as heads at two strides.
struct Heads {
  int64_t count, token_stride, head_stride;
};

Heads heads_of(const char* arg, const Tensor& t, int64_t tokens, int64_t head_size) {
  const Check check{kOp, arg, t};
  if (t.ndim() != 3) check.rank(2);
  check.dim(0, tokens).inner_contiguous();
  if (t.ndim() == 3) {
    check.dim(2, head_size);
    return {t.size(1), t.stride(0), t.stride(1)};
  }
  if (t.size(1) % head_size != 0)
    fail("ValueError", kOp, ".", arg, ": want rows of a multiple of head_size ", head_size,
         ", have ", shape_text(t));
  return {t.size(1) / head_size, t.stride(0), head_size};
}

template <typename T, typename C>
void rotate_heads(T* token, const Heads& heads, const C* cos, int64_t half, bool neox) {
  for (int64_t h = 0; h < heads.count; ++h) {
    T* head = token + h * heads.head_stride;
    if (neox)
      rotate_neox(head, cos, cos + half, half);
    else
      rotate_interleaved(head, cos, cos + half, half);
  }
}

void check_cache(const Tensor& cache, const Tensor& query, int64_t head_size) {
  const Check check{kOp, "cos_sin_cache", cache};
  check.rank(2).inner_contiguous();
  if (!is<float>(cache)) check.same_dtype(query);
  if (cache.size(1) % 2 != 0 || cache.size(1) > head_size)
    fail("ValueError", kOp, ".cos_sin_cache: want an even rotary dimension <= head_size ",
         head_size, ", have ", shape_text(cache));
}

template <typename T, typename C>
void rotate_all(const Tensor& query, const Heads& q, const Tensor& key, const Heads& k,
                const Ids& positions, const Tensor& cache, bool neox) {
  T *pq = query.data<T>(), *pk = key.data<T>();
  const C* table = cache.data<C>();
  const int64_t half = cache.size(1) / 2, row = cache.stride(0);
  const int64_t grain = 1 + 16384 / ((q.count + k.count) * half + 1);
  parallel_for(positions.count, grain, [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const C* cos = table + positions[t] * row;
      rotate_heads(pq + t * q.token_stride, q, cos, half, neox);
      rotate_heads(pk + t * k.token_stride, k, cos, half, neox);
    }
  });
}

}  // namespace

void fused_rotary_position_encoding(Tensor query, Tensor key, Tensor position_ids,
                                    Tensor cos_sin_cache, int64_t head_size, bool is_neox) {
  if (head_size <= 0) fail("ValueError", kOp, ".head_size: want > 0, have ", head_size);
  Check{kOp, "position_ids", position_ids}.rank(1);
  const Ids positions = ids_of(kOp, "position_ids", position_ids);
  const Heads q = heads_of("query", query, positions.count, head_size);
  const Heads k = heads_of("key", key, positions.count, head_size);
  Check{kOp, "key", key}.same_dtype(query);
  check_cache(cos_sin_cache, query, head_size);
  dispatch_float(kOp, "query", query, [&](auto tag) {
    using T = decltype(tag);
    check_range(kOp, "position_ids", positions, 0, cos_sin_cache.size(0));
    if (is<float>(cos_sin_cache))
      rotate_all<T, float>(query, q, key, k, positions, cos_sin_cache, is_neox);
    else
      rotate_all<T, T>(query, q, key, k, positions, cos_sin_cache, is_neox);
  });
}

FD_EXPORT(fused_rotary_position_encoding)

}  // namespace fd

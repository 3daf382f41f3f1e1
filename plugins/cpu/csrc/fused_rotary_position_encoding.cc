#include "fd/checks/rotary.h"
#include "fd/ids.h"
#include "fd/parallel.h"
#include "fd/rope.h"

namespace fd {
namespace {

constexpr const char* kOp = "fused_rotary_position_encoding";

// [tokens, heads * head_size] or [tokens, heads, head_size] as heads at two strides.
template <typename T, typename C>
void rotate_heads(T* token, const HeadRows& heads, const C* cos, int64_t half, bool neox) {
  for (int64_t h = 0; h < heads.count; ++h) {
    T* head = token + h * heads.head_stride;
    if (neox)
      rotate_neox(head, cos, cos + half, half);
    else
      rotate_interleaved(head, cos, cos + half, half);
  }
}

template <typename T, typename C>
void rotate_all(const Tensor& query, const HeadRows& q, const Tensor& key, const HeadRows& k,
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
  const RotatedHeads heads = check_rotated(kOp, query, key, position_ids, cos_sin_cache, head_size);
  const HeadRows q = heads.query, k = heads.key;
  const Ids positions = ids_of(kOp, "position_ids", position_ids);
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

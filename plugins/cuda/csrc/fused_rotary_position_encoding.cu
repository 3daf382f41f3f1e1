#include "fd/ids.cuh"
#include "fd/norm.cuh"
#include "fd/rope.cuh"

namespace fd {

// Heads of one tensor at two strides.
template <typename T>
struct RotaryHeads {
  T* data;
  int64_t token_stride, head_stride;
  int count;
};

// `positions` rows of half cosines and half sines, `step` apart.
template <typename C>
struct RotaryTable {
  const C* data;
  int64_t step, positions;
  int half;
};

// Threads of a token: `parts` to a head, query heads first.
struct RotaryPlace {
  int64_t token;
  int head, part;
};
__device__ __forceinline__ RotaryPlace rotary_place(int heads, int parts) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int within = static_cast<int>(i % (heads * parts));
  return {i / (heads * parts), within / parts, within % parts};
}

// The head, or null beyond the tokens and for a position outside the table.
template <typename T, typename C>
__device__ __forceinline__ T* rotary_head(const RotaryHeads<T>& q, const RotaryHeads<T>& k,
                                          const Ids& ids, const RotaryTable<C>& table,
                                          const RotaryPlace& at, const C** row) {
  if (at.token >= ids.count) return nullptr;
  const int64_t position = ids[at.token];
  if (position < 0 || position >= table.positions) return nullptr;
  *row = table.data + position * table.step;
  const bool query = at.head < q.count;
  const RotaryHeads<T>& x = query ? q : k;
  return x.data + at.token * x.token_stride + (query ? at.head : at.head - q.count) * x.head_stride;
}

// Pairs (j, j + half): 16 bytes of either half a thread.
template <typename T, typename C>
__global__ void fused_rotary_position_encoding_neox(RotaryHeads<T> q, RotaryHeads<T> k, Ids ids,
                                                    RotaryTable<C> table) {
  constexpr int N = kPack<T>;
  let_next_start();
  wait_for_inputs();
  const RotaryPlace place = rotary_place(q.count + k.count, table.half / N);
  const C* row;
  T* head = rotary_head(q, k, ids, table, place, &row);
  if (head == nullptr) return;
  const int at = place.part * N;
  const Floats<N, C> cos(row + at), sin(row + table.half + at);
  Pack<T> a = load_pack(head + at), b = load_pack(head + table.half + at);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Pair r = rotated(to_float(a[i]), to_float(b[i]), cos[i], sin[i]);
    a[i] = from_float<T>(r.a), b[i] = from_float<T>(r.b);
  }
  store_pack(head + at, a), store_pack(head + table.half + at, b);
}

// Pairs (2j, 2j + 1): 16 bytes a thread.
template <typename T, typename C>
__global__ void fused_rotary_position_encoding_interleaved(RotaryHeads<T> q, RotaryHeads<T> k,
                                                           Ids ids, RotaryTable<C> table) {
  constexpr int N = kPack<T> / 2;
  let_next_start();
  wait_for_inputs();
  const RotaryPlace place = rotary_place(q.count + k.count, table.half / N);
  const C* row;
  T* head = rotary_head(q, k, ids, table, place, &row);
  if (head == nullptr) return;
  const int at = place.part * N;
  const Floats<N, C> cos(row + at), sin(row + table.half + at);
  Pack<T> v = load_pack(head + 2 * at);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Pair r = rotated(to_float(v[2 * i]), to_float(v[2 * i + 1]), cos[i], sin[i]);
    v[2 * i] = from_float<T>(r.a), v[2 * i + 1] = from_float<T>(r.b);
  }
  store_pack(head + 2 * at, v);
}

// Any size and alignment: a pair a thread.
template <typename T, typename C>
__global__ void fused_rotary_position_encoding_any(RotaryHeads<T> q, RotaryHeads<T> k, Ids ids,
                                                   RotaryTable<C> table, bool neox) {
  let_next_start();
  wait_for_inputs();
  const RotaryPlace place = rotary_place(q.count + k.count, table.half);
  const C* row;
  T* head = rotary_head(q, k, ids, table, place, &row);
  if (head != nullptr) rotate_pair(head, row, place.part, table.half, neox);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/rotary.h"
#include "fd/ids.h"
#include "fd/rowwise.h"

namespace fd {

template <typename T>
RotaryHeads<T> rotary_heads(const Tensor& t, const HeadRows& rows) {
  return {t.data<T>(), rows.token_stride, rows.head_stride, static_cast<int>(rows.count)};
}

template <typename T, typename C>
void rotary_launch(const Launch& on, const RotaryHeads<T>& q, const RotaryHeads<T>& k,
                   const Ids& ids, const RotaryTable<C>& table, bool neox) {
  const bool packs = packable<T>(neox ? table.half : 2 * table.half,
                                 {q.token_stride, q.head_stride, k.token_stride, k.head_stride},
                                 {q.data, k.data}) &&
                     packable<C>(table.half, {table.step}, {table.data});
  const int each = !packs ? 1 : neox ? kPack<T> : kPack<T> / 2;
  const int64_t items = ids.count * (q.count + k.count) * (table.half / each);
  const dim3 grid((items + 127) / 128), block(128);
  if (!packs)
    run_overlapped(on, fused_rotary_position_encoding_any<T, C>, grid, block, 0, q, k, ids, table,
                   neox);
  else if (neox)
    run_overlapped(on, fused_rotary_position_encoding_neox<T, C>, grid, block, 0, q, k, ids, table);
  else
    run_overlapped(on, fused_rotary_position_encoding_interleaved<T, C>, grid, block, 0, q, k, ids,
                   table);
}

template <typename T, typename C>
RotaryTable<C> rotary_table(const Tensor& cache) {
  return {cache.data<C>(), cache.stride(0), cache.size(0), static_cast<int>(cache.size(1) / 2)};
}

void fused_rotary_position_encoding(Tensor query, Tensor key, Tensor position_ids,
                                    Tensor cos_sin_cache, int64_t head_size, bool is_neox) {
  const char* op = "fused_rotary_position_encoding";
  dispatch_float(op, "query", query, [&](auto tag) {
    using T = decltype(tag);
    const RotatedHeads heads =
        check_rotated(op, query, key, position_ids, cos_sin_cache, head_size);
    const RotaryHeads<T> q = rotary_heads<T>(query, heads.query);
    const RotaryHeads<T> k = rotary_heads<T>(key, heads.key);
    const Ids ids = ids_of(op, "position_ids", position_ids);
    same_device(op, query, {key, position_ids, cos_sin_cache});
    const Launch on = launch_on(op, query);
    check_range(on, "position_ids", ids, 0, cos_sin_cache.size(0));
    if (is<float>(cos_sin_cache))
      rotary_launch(on, q, k, ids, rotary_table<T, float>(cos_sin_cache), is_neox);
    else
      rotary_launch(on, q, k, ids, rotary_table<T, T>(cos_sin_cache), is_neox);
  });
}
FD_EXPORT(fused_rotary_position_encoding)

}  // namespace fd
#endif

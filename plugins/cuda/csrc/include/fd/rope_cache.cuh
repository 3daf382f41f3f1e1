// One head of a packed projection, normed, rotated and written to the paged cache: what
// rope_and_cache.cu does for all, and the decoding kernel of attention for those of its block.
#pragma once
#include "fd/heads.cuh"
#include "fd/ids.cuh"
#include "fd/kv_write.cuh"
#include "fd/rope.cuh"

namespace fd {

// Heads of qkv: q_heads of q, then kv_heads of k, then as many of v. Strides in elements.
template <typename T, typename C>
struct RopeAndCache {
  T* qkv;
  int64_t step, tokens;
  Ids positions;
  const float* table;  // `rows` rows of half cosines and half sines
  int64_t table_step, rows;
  const T *q_weight, *k_weight;  // null: no norm
  C *key, *value;
  CachePool key_pool, value_pool;
  const int64_t* slots;
  int q_heads, kv_heads, dim, half;
  float eps;
  bool neox;

  __device__ __forceinline__ int heads() const { return q_heads + 2 * kv_heads; }
  __device__ __forceinline__ bool turns(int head) const { return head < q_heads + kv_heads; }
  __device__ __forceinline__ const T* weight(int head) const {
    return !turns(head) ? nullptr : head < q_heads ? q_weight : k_weight;
  }
  __device__ __forceinline__ T* at(int64_t token, int head) const {
    return qkv + token * step + int64_t{head} * dim;
  }
  // Null for a position outside the table: the token is left out.
  __device__ __forceinline__ const float* row(int64_t token) const {
    const int64_t position = token < tokens ? positions[token] : -1;
    return position < 0 || position >= rows ? nullptr : table + position * table_step;
  }
  // Where the head goes in its pool; null for queries and tokens without a slot.
  __device__ __forceinline__ C* cached(int64_t token, int head) const {
    if (head < q_heads) return nullptr;
    const bool values = !turns(head);
    const CachePool& pool = values ? value_pool : key_pool;
    const int64_t slot = slots[token];
    if (!pool.has(slot)) return nullptr;
    return (values ? value : key) + pool.offset(slot, head - q_heads - (values ? kv_heads : 0));
  }
};

// Pairs (a[i], b[i]) from table column j on.
template <typename T>
__device__ __forceinline__ void rope_neox(Pack<T>& a, Pack<T>& b, const float* row, int j,
                                          int half) {
  const Floats<kPack<T>, float> cos(row + j), sin(row + half + j);
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) {
    const Pair r = rotated(to_float(a[i]), to_float(b[i]), cos[i], sin[i]);
    a[i] = from_float<T>(r.a), b[i] = from_float<T>(r.b);
  }
}

// Pairs (v[2 i], v[2 i + 1]) of the elements from `at` on, where they are rotated.
template <typename T>
__device__ __forceinline__ void rope_pairs(Pack<T>& v, const float* row, int at, int half) {
  if (at >= 2 * half) return;
  constexpr int N = kPack<T> / 2;
  const Floats<N, float> cos(row + at / 2), sin(row + half + at / 2);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Pair r = rotated(to_float(v[2 * i]), to_float(v[2 * i + 1]), cos[i], sin[i]);
    v[2 * i] = from_float<T>(r.a), v[2 * i + 1] = from_float<T>(r.b);
  }
}

template <typename T, typename C>
__device__ __forceinline__ void cache_put(C* to, const Pack<T>& v) {
  *reinterpret_cast<Vec<C, kPack<T>>*>(to) = Converted<T, C, kPack<T>>::of(&v[0]);
}

// A lane's part of a head: 16 bytes of either half.
template <typename T>
struct HeadPacks {
  Pack<T> a, b;
};

// A head over `lanes` lanes, a power of two; by whole warps, whose lanes may have other heads.
// `row`: of the table, null: the head is left out. Elements from `at` on and from `at` + half a
// head.
template <typename T, typename C>
__device__ __forceinline__ HeadPacks<T> rope_head(const RopeAndCache<T, C>& all, int64_t token,
                                                  int head, const float* row, int at, int lanes) {
  const int other = at + all.dim / 2;
  const T* from = all.at(token, head);
  Pack<T> a{}, b{};
  if (row != nullptr) a = load_pack(from + at), b = load_pack(from + other);
  if (all.q_weight != nullptr) {  // the same for all threads: they add up together
    const float sum = group_sum(sum_squares<T>(a) + sum_squares<T>(b), lanes);
    const float scale = rsqrtf(sum / static_cast<float>(all.dim) + all.eps);
    const T* weight = all.weight(head);
    if (weight != nullptr) {
      a = scaled<T, T>(a, scale, weight + at);
      b = scaled<T, T>(b, scale, weight + other);
    }
  }
  if (row != nullptr && all.turns(head)) {
    if (all.neox)
      rope_neox<T>(a, b, row, at, all.half);
    else
      rope_pairs<T>(a, row, at, all.half), rope_pairs<T>(b, row, other, all.half);
  }
  return {a, b};
}

// To the head's place in its pool, if it has one.
template <typename T, typename C>
__device__ __forceinline__ void rope_cached(const RopeAndCache<T, C>& all, int64_t token, int head,
                                            int at, const HeadPacks<T>& x) {
  C* cache = all.cached(token, head);
  if (cache == nullptr) return;
  cache_put<T, C>(cache + at, x.a), cache_put<T, C>(cache + at + all.dim / 2, x.b);
}

}  // namespace fd

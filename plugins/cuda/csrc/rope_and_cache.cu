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
__device__ __forceinline__ void rope_and_cache_neox(Pack<T>& a, Pack<T>& b, const float* row, int j,
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
__device__ __forceinline__ void rope_and_cache_pairs(Pack<T>& v, const float* row, int at,
                                                     int half) {
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
__device__ __forceinline__ void rope_and_cache_put(C* to, const Pack<T>& v) {
  *reinterpret_cast<Vec<C, kPack<T>>*>(to) = Converted<T, C, kPack<T>>::of(&v[0]);
}

// A head over `lanes` lanes, each with 16 bytes of either half.
template <typename T, typename C>
__global__ void rope_and_cache_packs(RopeAndCache<T, C> all, int lanes) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
  const int64_t token = i / all.heads();
  const int head = static_cast<int>(i % all.heads());
  const int at = threadIdx.x % lanes * kPack<T>, other = at + all.dim / 2;
  const float* row = all.row(token);
  T* from = all.at(token, head);
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
  if (row == nullptr) return;
  if (all.turns(head)) {
    if (all.neox)
      rope_and_cache_neox<T>(a, b, row, at, all.half);
    else
      rope_and_cache_pairs<T>(a, row, at, all.half),
          rope_and_cache_pairs<T>(b, row, other, all.half);
    store_pack(from + at, a), store_pack(from + other, b);
  }
  C* cache = all.cached(token, head);
  if (cache != nullptr)
    rope_and_cache_put<T, C>(cache + at, a), rope_and_cache_put<T, C>(cache + other, b);
}

// One element of a head in place, normed if there is a weight.
template <typename T>
struct NormedHead {
  T* data;
  const T* weight;
  float scale;

  __device__ __forceinline__ float operator[](int d) const {
    if (weight == nullptr) return to_float(data[d]);
    return to_float(from_float<T>(to_float(data[d]) * scale * to_float(weight[d])));
  }
};

// Any size and alignment: a warp a head, a pair or an element a lane.
template <typename T, typename C>
__global__ void rope_and_cache_any(RopeAndCache<T, C> all) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const int64_t token = i / all.heads();
  const int head = static_cast<int>(i % all.heads()), lane = threadIdx.x % kWarp;
  const float* row = all.row(token);
  if (row == nullptr) return;  // the whole warp
  T* data = all.at(token, head);
  float sum = 0.f;
  for (int d = lane; d < all.dim; d += kWarp) sum += to_float(data[d]) * to_float(data[d]);
  sum = group_sum(sum, kWarp);
  const NormedHead<T> x{data, all.weight(head),
                        rsqrtf(sum / static_cast<float>(all.dim) + all.eps)};
  C* cache = all.cached(token, head);
  const auto put = [&](int d, float value) {
    const T rounded = from_float<T>(value);
    if (all.turns(head)) data[d] = rounded;
    if (cache != nullptr) cache[d] = Converted<T, C, 1>::of(&rounded)[0];
  };
  const int half = all.turns(head) ? all.half : 0;
  for (int j = lane; j < half; j += kWarp) {
    const int da = all.neox ? j : 2 * j, db = all.neox ? j + half : 2 * j + 1;
    const Pair r = rotated(x[da], x[db], row[j], row[half + j]);
    put(da, r.a), put(db, r.b);
  }
  for (int d = 2 * half + lane; d < all.dim; d += kWarp) put(d, x[d]);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/kv_write.h"
#include "fd/norm.h"
#include "fd/rowwise.h"

namespace fd {

inline void rope_and_cache_pool(const char* arg, const Tensor& cache, const Tensor& like,
                                const Tensor& qkv) {
  const Check check{"rope_and_cache", arg, cache};
  check.rank(4).inner_contiguous().same_shape(like).same_dtype(like);
  const bool rounds = is<float>(qkv) && (is<bf16>(cache) || is<f16>(cache));
  if (!rounds) check.same_dtype(qkv);
  if (cache.size(3) <= 0 || cache.size(3) % 8 != 0)
    fail("ValueError", "rope_and_cache.", arg,
         ": want a head dimension that is a multiple of 8, have ", shape_text(cache));
}

inline void rope_and_cache_table(const Tensor& table, int64_t dim) {
  const char* op = "rope_and_cache";
  Check{op, "cos_sin_cache", table}.rank(2).dtype<float>("float32").inner_contiguous();
  if (table.size(1) % 2 != 0 || table.size(1) > dim)
    fail("ValueError", op, ".cos_sin_cache: want an even rotary dimension <= ", dim, ", have ",
         shape_text(table));
}

inline void rope_and_cache_weights(const OptTensor& q, const OptTensor& k, const Tensor& qkv,
                                   int64_t dim) {
  const char* op = "rope_and_cache";
  if (static_cast<bool>(q) != static_cast<bool>(k))
    fail("ValueError", op, ".k_norm_weight: want both weights or neither, have one");
  if (!q) return;
  Check{op, "q_norm_weight", q}.rank(1).dim(0, dim).same_dtype(qkv).contiguous();
  Check{op, "k_norm_weight", k}.rank(1).dim(0, dim).same_dtype(qkv).contiguous();
}

// Query heads: what qkv's rows hold beyond the keys and values.
inline int rope_and_cache_heads(const Tensor& qkv, int64_t kv_heads, int64_t dim) {
  const char* op = "rope_and_cache";
  Check{op, "qkv", qkv}.rank(2).inner_contiguous();
  const int64_t rest = qkv.size(1) - 2 * kv_heads * dim;
  if (rest < 0 || rest % dim != 0)
    fail("ValueError", op, ".qkv: want rows of heads of ", dim, ", ", 2 * kv_heads,
         " of them keys and values, have ", shape_text(qkv));
  return static_cast<int>(rest / dim);
}

// Lanes of a head for the vectorised kernel; 0 where it does not fit.
template <typename T, typename C>
int rope_and_cache_lanes(const RopeAndCache<T, C>& all) {
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

template <typename T, typename C>
void rope_and_cache_launch(const Launch& on, const RopeAndCache<T, C>& all) {
  const int lanes = rope_and_cache_lanes(all), threads = 128;
  const int64_t items = all.tokens * (all.q_heads + 2 * all.kv_heads) * (lanes ? lanes : kWarp);
  const dim3 grid((items + threads - 1) / threads);
  if (lanes)
    run_overlapped(on, rope_and_cache_packs<T, C>, grid, dim3(threads), 0, all, lanes);
  else
    run_overlapped(on, rope_and_cache_any<T, C>, grid, dim3(threads), 0, all);
}

// f(T{}, C{}) for the element types of qkv and the caches.
template <typename F>
void rope_and_cache_types(const Tensor& qkv, const Tensor& cache, F&& f) {
  dispatch_float("rope_and_cache", "qkv", qkv, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_same_v<T, float>) {
      if (is<bf16>(cache)) return f(tag, bf16{});
      if (is<f16>(cache)) return f(tag, f16{});
    }
    f(tag, T{});
  });
}

void rope_and_cache(Tensor qkv, Tensor position_ids, Tensor cos_sin_cache, OptTensor q_norm_weight,
                    OptTensor k_norm_weight, double eps, Tensor key_cache, Tensor value_cache,
                    Tensor slot_mapping, bool is_neox) {
  const char* op = "rope_and_cache";
  rope_and_cache_pool("key_cache", key_cache, key_cache, qkv);
  rope_and_cache_pool("value_cache", value_cache, key_cache, qkv);
  const int64_t tokens = qkv.size(0), kv_heads = key_cache.size(2), dim = key_cache.size(3);
  const int q_heads = rope_and_cache_heads(qkv, kv_heads, dim);
  Check{op, "position_ids", position_ids}.rank(1).dim(0, tokens);
  const Ids positions = ids_of(op, "position_ids", position_ids);
  rope_and_cache_table(cos_sin_cache, dim);
  rope_and_cache_weights(q_norm_weight, k_norm_weight, qkv, dim);
  check_eps(op, eps);
  const Ids slots = slots_of(op, slot_mapping, tokens);
  same_device(op, qkv,
              {position_ids, cos_sin_cache, q_norm_weight, k_norm_weight, key_cache, value_cache,
               slot_mapping});
  const Launch on = launch_on(op, qkv);
  check_range(on, "position_ids", positions, 0, cos_sin_cache.size(0));
  check_slots(on, slots, key_cache.size(0) * key_cache.size(1));
  rope_and_cache_types(qkv, key_cache, [&](auto tag, auto cache_tag) {
    using T = decltype(tag);
    using C = decltype(cache_tag);
    RopeAndCache<T, C> all{};
    all.qkv = qkv.data<T>(), all.step = qkv.stride(0), all.tokens = tokens;
    all.positions = positions, all.table = cos_sin_cache.data<float>();
    all.table_step = cos_sin_cache.stride(0), all.rows = cos_sin_cache.size(0);
    if (q_norm_weight)
      all.q_weight = q_norm_weight.data<T>(), all.k_weight = k_norm_weight.data<T>();
    all.key = key_cache.data<C>(), all.value = value_cache.data<C>();
    all.key_pool = cache_pool(key_cache), all.value_pool = cache_pool(value_cache);
    all.slots = slots.wide, all.q_heads = q_heads, all.kv_heads = static_cast<int>(kv_heads);
    all.dim = static_cast<int>(dim), all.half = static_cast<int>(cos_sin_cache.size(1) / 2);
    all.eps = static_cast<float>(eps), all.neox = is_neox;
    rope_and_cache_launch(on, all);
  });
}
FD_EXPORT(rope_and_cache)

}  // namespace fd
#endif

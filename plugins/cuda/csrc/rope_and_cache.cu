#include "fd/rope_cache.cuh"

namespace fd {

template <typename T, typename C>
__global__ void rope_and_cache_packs(RopeAndCache<T, C> all, int lanes) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
  const int64_t token = i / all.heads();
  const int head = static_cast<int>(i % all.heads()), at = threadIdx.x % lanes * kPack<T>;
  const float* row = all.row(token);
  const HeadPacks<T> x = rope_head<T, C>(all, token, head, row, at, lanes);
  if (row == nullptr) return;
  if (all.turns(head)) {
    T* to = all.at(token, head) + at;
    store_pack(to, x.a), store_pack(to + all.dim / 2, x.b);
  }
  rope_cached<T, C>(all, token, head, at, x);
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
#include "fd/rope_cache.h"

namespace fd {

template <typename T, typename C>
void rope_and_cache_launch(const Launch& on, const RopeAndCache<T, C>& all) {
  const int lanes = rope_lanes(all), threads = 128;
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

void rope_and_cache_all(const char* op, const RopeTensors& t) {
  const RopeIds ids = check_rope(op, t);
  const Launch on = launch_on(op, t.qkv);
  check_rope_ids(on, t, ids);
  rope_and_cache_types(t.qkv, t.key_cache, [&](auto tag, auto cache_tag) {
    rope_and_cache_launch(on, rope_call<decltype(tag), decltype(cache_tag)>(t, ids));
  });
}

void rope_and_cache(Tensor qkv, Tensor position_ids, Tensor cos_sin_cache, OptTensor q_norm_weight,
                    OptTensor k_norm_weight, double eps, Tensor key_cache, Tensor value_cache,
                    Tensor slot_mapping, bool is_neox) {
  const RopeTensors t{qkv, position_ids, cos_sin_cache, q_norm_weight, k_norm_weight,
                      eps, key_cache,    value_cache,   slot_mapping,  is_neox};
  rope_and_cache_all("rope_and_cache", t);
}
FD_EXPORT(rope_and_cache)

}  // namespace fd
#endif

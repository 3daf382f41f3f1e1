// Device side of the norms: a row spread over a block, or a head over a few lanes.
#pragma once
#include "fd/overlap.cuh"
#include "fd/pack.cuh"
#include "fd/reduce.cuh"

namespace fd {

// Most threads of a block that holds a row in V vectors each (row_shape in fd/norm.h).
template <int V>
constexpr int kRowThreads = V == 4 ? 1024 : 512;

// f(v, at) for the vectors of a row that this thread holds; `at`: first element.
template <typename T, int V, typename F>
__device__ __forceinline__ void each_pack(int64_t width, F&& f) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t at = (int64_t{v} * blockDim.x + threadIdx.x) * kPack<T>;
    if (at < width) f(v, at);
  }
}

// For rows that are too many to stay in the second-level cache until somebody reads them again.
template <typename T>
__device__ __forceinline__ Pack<T> load_once(const T* p) {
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(p));
  return *reinterpret_cast<const Pack<T>*>(&raw);
}
template <typename T>
__device__ __forceinline__ void store_once(T* p, const Pack<T>& v) {
  __stcs(reinterpret_cast<uint4*>(p), *reinterpret_cast<const uint4*>(&v));
}

template <typename T>
__device__ __forceinline__ float sum_squares(const Pack<T>& v) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) sum += to_float(v[i]) * to_float(v[i]);
  return sum;
}

// 1 / sqrt(mean square + eps) of a row, from every thread's part of the sum of squares.
__device__ __forceinline__ float rms_scale(float sum, int64_t width, float eps, float* scratch) {
  return rsqrtf(block_reduce<Sum>(sum, scratch) / static_cast<float>(width) + eps);
}

// x * scale * weight, with one rounding.
template <typename T, typename W>
__device__ __forceinline__ Pack<T> scaled(const Pack<T>& x, float scale,
                                          const Floats<kPack<T>, W>& w) {
  Pack<T> out;
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) out[i] = from_float<T>(to_float(x[i]) * scale * w[i]);
  return out;
}
template <typename T, typename W>
__device__ __forceinline__ Pack<T> scaled(const Pack<T>& x, float scale, const W* weight) {
  return scaled<T, W>(x, scale, Floats<kPack<T>, W>(weight));
}

// The weights that a thread's vectors of a row meet. `Ahead`: read before the sum is known and
// fetched while the kernel before ends, for rows too few to hide how long that takes; else read
// when they are needed, which leaves registers for more rows.
template <typename T, typename W, int V, bool Ahead>
struct RowWeights {
  const W* weight;
  Floats<kPack<T>, W> kept[Ahead ? V : 1];

  __device__ __forceinline__ void fetch(int64_t width) const {
    if (Ahead) each_pack<T, V>(width, [&](int, int64_t at) { fetch_ahead(weight + at); });
  }
  __device__ __forceinline__ void load(int64_t width) {
    if (Ahead)
      each_pack<T, V>(width, [&](int v, int64_t at) {
        kept[Ahead ? v : 0] = Floats<kPack<T>, W>(weight + at);
      });
  }
  __device__ __forceinline__ Pack<T> times(const Pack<T>& x, float scale, int v, int64_t at) const {
    if (Ahead) return scaled<T, W>(x, scale, kept[Ahead ? v : 0]);
    return scaled<T, W>(x, scale, weight + at);
  }
};

}  // namespace fd

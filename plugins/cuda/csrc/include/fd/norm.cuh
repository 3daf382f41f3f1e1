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

// A row's squares are added in an order that does not depend on the block that holds the row: those
// of a vector, of four vectors (a part), of every 32nd part, of the 32.
constexpr int kPartLanes = 4;

// From sum_squares of a lane's vector, in each of the four lanes; by a whole warp.
__device__ __forceinline__ float part_squares(float sum) {
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

template <typename T>
__host__ __device__ constexpr int64_t row_parts(int64_t width) {
  return (width + kPartLanes * kPack<T> - 1) / (kPartLanes * kPack<T>);
}

__device__ __forceinline__ float inverse_of(int64_t width) {
  return 1.f / static_cast<float>(width);
}

// rms_scale by a warp, of all parts of a row; `Most`: of them, where that is known to be few.
template <typename T, int Most = 0>
__device__ __forceinline__ float rms_scale(const float* parts, int64_t width, float inverse,
                                           float eps) {
  const int count = static_cast<int>(row_parts<T>(width));
  float sum = 0.f;
  if constexpr (Most == 0) {
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) sum += parts[i];
  } else {
#pragma unroll
    for (int j = 0; j < Most; j += kWarp) {
      const int i = j + threadIdx.x % kWarp;
      sum += i < count ? parts[i] : 0.f;
    }
  }
  return rsqrtf(fmaf(warp_reduce<Sum>(sum), inverse, eps));
}

// The same of a row that a block holds as each_pack says; every thread gets it. `parts`: shared.
template <int V>
constexpr int kRowParts = V * kRowThreads<V> / kPartLanes;

template <typename T, int V>
__device__ __forceinline__ float rms_scale(const Pack<T> (&kept)[V], int64_t width, float eps,
                                           float* parts) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t pack = int64_t{v} * blockDim.x + threadIdx.x;
    const bool inside = pack * kPack<T> < width;
    const float part = part_squares(inside ? sum_squares<T>(kept[v]) : 0.f);
    if (inside && threadIdx.x % kPartLanes == 0) parts[pack / kPartLanes] = part;
  }
  __syncthreads();
  return rms_scale<T>(parts, width, inverse_of(width), eps);
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

// Rows of floats as int8 codes with a scale each.
#pragma once
#include "fd/norm.cuh"

namespace fd {

// |x|, infinite for what is not a number.
__device__ __forceinline__ float int8_magnitude(float x) {
  return fabsf(x) < INFINITY ? fabsf(x) : INFINITY;
}

// How a row whose largest magnitude is `most` becomes codes; all 0, and the scale NaN, where it is
// not finite.
struct Int8Row {
  float most, to_code;

  __device__ __forceinline__ explicit Int8Row(float largest)
      : most(largest), to_code(largest > 0.f && largest < INFINITY ? 127.f / largest : 0.f) {}
  __device__ __forceinline__ float scale() const {
    return most < INFINITY ? most / 127.f : __int_as_float(0x7fffffff);
  }
  __device__ __forceinline__ int8_t code(float x) const {
    const float nearest = to_code > 0.f ? rintf(x * to_code) : 0.f;
    return static_cast<int8_t>(fminf(fmaxf(nearest, -127.f), 127.f));
  }
};

// codes [rows, depth], scales [rows] = largest magnitude / 127; a block has a row. Codes are the
// nearest, ties to even. A row that is not finite: scale NaN.
template <typename T, int V>
__global__ void __launch_bounds__(kRowThreads<V>)
    int8_rows(const T* from, int64_t step, int64_t depth, int8_t* codes, float* scales) {
  __shared__ float scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  from += blockIdx.x * step, codes += blockIdx.x * depth;
  Pack<T> kept[V];
  float most = 0.f;
  each_pack<T, V>(depth, [&](int v, int64_t at) {
    kept[v] = load_pack(from + at);
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) most = fmaxf(most, int8_magnitude(to_float(kept[v][i])));
  });
  const Int8Row row(block_reduce<Max>(most, scratch));
  if (threadIdx.x == 0) scales[blockIdx.x] = row.scale();
  each_pack<T, V>(depth, [&](int v, int64_t at) {
    Vec<int8_t, kPack<T>> made;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) made[i] = row.code(to_float(kept[v][i]));
    *reinterpret_cast<Vec<int8_t, kPack<T>>*>(codes + at) = made;
  });
}

// Any width and alignment: two passes over the row.
template <typename T>
__global__ void __launch_bounds__(256)
    int8_rows_any(const T* from, int64_t step, int64_t depth, int8_t* codes, float* scales) {
  __shared__ float scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  from += blockIdx.x * step, codes += blockIdx.x * depth;
  float most = 0.f;
  for (int64_t k = threadIdx.x; k < depth; k += blockDim.x)
    most = fmaxf(most, int8_magnitude(to_float(from[k])));
  const Int8Row row(block_reduce<Max>(most, scratch));
  if (threadIdx.x == 0) scales[blockIdx.x] = row.scale();
  for (int64_t k = threadIdx.x; k < depth; k += blockDim.x) codes[k] = row.code(to_float(from[k]));
}

}  // namespace fd

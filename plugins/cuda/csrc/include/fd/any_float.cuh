// Floats whose storage type is known at run time only: a branch that all threads of a grid take
// alike.
#pragma once
#include "fd/types.h"

namespace fd {

enum FloatKind : int { kFloat32, kBfloat16, kFloat16 };

__device__ __forceinline__ float load_any(const void* from, int kind, int64_t i) {
  if (kind == kFloat32) return static_cast<const float*>(from)[i];
  if (kind == kBfloat16) return to_float(static_cast<const bf16*>(from)[i]);
  return to_float(static_cast<const f16*>(from)[i]);
}

__device__ __forceinline__ void store_any(void* to, int kind, int64_t i, float x) {
  if (kind == kFloat32)
    static_cast<float*>(to)[i] = x;
  else if (kind == kBfloat16)
    static_cast<bf16*>(to)[i] = from_float<bf16>(x);
  else
    static_cast<f16*>(to)[i] = from_float<f16>(x);
}

template <typename T, int V>
__device__ __forceinline__ void store_as(void* to, int64_t i, const Vec<float, V>& x) {
  Vec<T, V> y;
#pragma unroll
  for (int j = 0; j < V; ++j) y[j] = from_float<T>(x[j]);
  *reinterpret_cast<Vec<T, V>*>(static_cast<T*>(to) + i) = y;
}

// V neighbours from element i on; their address is aligned to them.
template <int V>
__device__ __forceinline__ void store_any(void* to, int kind, int64_t i, const Vec<float, V>& x) {
  if (kind == kFloat32) return store_as<float>(to, i, x);
  if (kind == kBfloat16) return store_as<bf16>(to, i, x);
  store_as<f16>(to, i, x);
}

// Where a linear layer's sums go: out[m * step + n] = sum + bias[n].
struct LinearSink {
  void* out;
  const void* bias;  // may be null
  int64_t step;
  int out_kind, bias_kind;

  // For skinny.cuh: tiles of W that make a result, and what put() needs of an element, for kernels
  // that can read it early.
  static constexpr int kParts = 1;
  struct Column {};
  __device__ __forceinline__ void early(Column&, int64_t, int64_t) const {}
  __device__ __forceinline__ void put(int64_t m, int64_t n, float sum, Column = {}) const {
    store_any(out, out_kind, m * step + n, biased(sum, n));
  }
  __device__ __forceinline__ float biased(float sum, int64_t n) const {
    return bias == nullptr ? sum : sum + load_any(bias, bias_kind, n);
  }
};

}  // namespace fd

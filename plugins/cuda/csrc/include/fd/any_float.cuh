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

// Where a linear layer's sums go: out[m * step + n] = sum + bias[n].
struct LinearSink {
  void* out;
  const void* bias;  // may be null
  int64_t step;
  int out_kind, bias_kind;

  __device__ __forceinline__ void put(int64_t m, int64_t n, float sum) const {
    if (bias != nullptr) sum += load_any(bias, bias_kind, n);
    store_any(out, out_kind, m * step + n, sum);
  }
};

}  // namespace fd

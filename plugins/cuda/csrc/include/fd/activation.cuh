// Activations in float. The quotients are good to 2 ulp and 0 where the denominator exceeds 2^126.
#pragma once
#include "fd/types.h"

namespace fd {

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

// x * sigmoid(x); NaN at -inf, as the product is.
__device__ __forceinline__ float silu_of(float x) { return __fdividef(x, 1.f + __expf(-x)); }

// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), which does not cancel for negative u.
__device__ __forceinline__ float gelu_tanh_of(float x) {
  const float u = (x * x * x * 0.044715f + x) * 0.7978845608028654f;
  return __fdividef(x, 1.f + __expf(-2.f * u));
}

// NaN stays NaN.
__device__ __forceinline__ float clamped(float x, float low, float high) {
  const float a = x < low ? low : x;
  return a > high ? high : a;
}

struct SiluMul {
  __device__ __forceinline__ float operator()(float gate, float up) const {
    return silu_of(gate) * up;
  }
};

}  // namespace fd

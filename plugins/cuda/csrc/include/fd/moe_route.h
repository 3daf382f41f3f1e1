// Host side of the ops that choose experts.
#pragma once
#include "fd/cuda.h"
#include "fd/moe_route.cuh"

namespace fd {

constexpr int64_t kMaxTopK = 256;

inline void check_top_k(const char* op, int64_t k, int64_t experts) {
  if (k < 1 || k > experts || k > kMaxTopK)
    fail("ValueError", op, ".moe_topk: want 1 .. ", std::min(experts, kMaxTopK), ", have ", k);
}

inline const float* route_bias(const char* op, const char* arg, OptTensor bias, int64_t experts) {
  if (!bias) return nullptr;
  Check{op, arg, bias}.dtype<float>("float32").numel(experts).contiguous();
  if (bias.ndim() == 0 || bias.size(-1) != experts)
    fail("ValueError", op, ".", arg, ": want [", experts, "] or [1, ", experts, "], have ",
         shape_text(bias));
  return bias.data<float>();
}

inline int64_t leading_rows(const Tensor& t) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.ndim(); ++i) rows *= t.size(i);
  return rows;
}

inline dim3 route_grid(int64_t tokens) {
  return dim3(static_cast<unsigned>((tokens + kRouteWarps - 1) / kRouteWarps));
}

}  // namespace fd

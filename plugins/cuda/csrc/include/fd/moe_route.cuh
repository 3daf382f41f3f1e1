// Choosing experts: softmax scores of a row and the best k by score + bias; a warp for each token.
#pragma once
#include "fd/reduce.cuh"

namespace fd {

constexpr int kRouteWarps = 4;

struct MoeRouter {
  const float* bias;  // null: none
  int experts, k;
  bool raw, grouped, normalised;  // grouped: slot j takes the best of the j-th of k runs of experts
};

// Numbers as they are ordered, with -0 equal to 0, NaN below all of them; the lower id above among
// equals. No two entries are equal, and none is 0.
__device__ __forceinline__ uint64_t route_key(float x, int id) {
  const int bits = __float_as_int(x + 0.f);
  const uint32_t order =
      static_cast<uint32_t>(bits < 0 ? ~bits : bits | static_cast<int>(1u << 31));
  return static_cast<uint64_t>(x == x ? order : 0) << 32 |
         (0xffffffffu - static_cast<uint32_t>(id));
}

// `n` experts of one softmax, from `first` on (raw: the scores are used as they are).
struct MoeRun {
  const float* x;
  const float* bias;
  int first, n;
  bool raw;
  float top, sum;

  __device__ __forceinline__ MoeRun(const MoeRouter& router, const float* row, int begin, int count)
      : x(row), bias(router.bias), first(begin), n(count), raw(router.raw), top(-INFINITY), sum(0) {
    const int lane = threadIdx.x % kWarp;
    if (raw) return;
    for (int i = lane; i < n; i += kWarp) top = fmaxf(top, x[first + i]);
    top = warp_reduce<Max>(top);
    for (int i = lane; i < n; i += kWarp) sum += expf(x[first + i] - top);
    sum = warp_reduce<Sum>(sum);
  }
  __device__ __forceinline__ float score(int id) const {
    return raw ? x[id] : expf(x[id] - top) / sum;
  }
  // Without a bias the logits themselves are compared: they order as the scores do, with no ties
  // from rounding.
  __device__ __forceinline__ float compared(int id) const {
    return bias != nullptr ? score(id) + bias[id] : x[id];
  }
  // The best key below `last`; in every lane.
  __device__ __forceinline__ uint64_t best(uint64_t last) const {
    uint64_t found = 0;
    for (int id = first + static_cast<int>(threadIdx.x) % kWarp; id < first + n; id += kWarp) {
      const uint64_t key = route_key(compared(id), id);
      if (key < last && key > found) found = key;
    }
#pragma unroll
    for (int d = kWarp / 2; d > 0; d /= 2) {
      const uint64_t other = __shfl_xor_sync(0xffffffffu, found, d);
      found = other > found ? other : found;
    }
    return found;
  }
};

// One token's experts and weights, best first.
template <typename Id>
__device__ void route_token(const MoeRouter& router, const float* x, Id* ids, float* weights) {
  const int runs = router.grouped ? router.k : 1, each = router.k / runs;
  const int width = router.experts / runs;
  float total = 0;
  for (int r = 0; r < runs; ++r) {
    const MoeRun run(router, x, r * width, width);
    uint64_t last = ~uint64_t{0};
    for (int j = r * each; j < (r + 1) * each; ++j) {
      last = run.best(last);
      const int id = static_cast<int>(0xffffffffu - static_cast<uint32_t>(last));
      const float weight = run.score(id);
      total += weight;
      if (threadIdx.x % kWarp == 0) ids[j] = static_cast<Id>(id), weights[j] = weight;
    }
  }
  if (!router.normalised) return;
  __syncwarp();
  for (int j = threadIdx.x % kWarp; j < router.k; j += kWarp)
    weights[j] = total == 0 ? 0.f : weights[j] / total;
}

}  // namespace fd

// The same products as expert_product.cuh in float32 arithmetic, on any architecture, for any float
// types and sizes.
#pragma once
#include "fd/activation.cuh"
#include "fd/any_float.cuh"
#include "fd/expert_tiles.cuh"

namespace fd {

struct PlainExperts {
  ExpertRows rows;
  const void *x, *w, *bias;  // [rows, depth]; [experts, depth, columns]; [experts, columns] or null
  int64_t depth, columns;
  void* out;         // [rows, columns], or [rows, columns / 2] where gated
  int kind, w_kind;  // of x, bias and out; of w

  __device__ __forceinline__ float rounded(float x) const {
    if (kind == kFloat32) return x;
    return kind == kBfloat16 ? to_float(from_float<bf16>(x)) : to_float(from_float<f16>(x));
  }
  __device__ __forceinline__ float shift(int64_t expert, int64_t n) const {
    return bias != nullptr ? load_any(bias, kind, expert * columns + n) : 0.f;
  }
};

constexpr int kPlainHeight = 64, kPlainWidth = 32, kExpertDepth = 16;

// 64 x 32 outputs a block of 256 threads, 4 x 2 each; where Gated, of both halves of W's columns.
template <bool Gated>
__global__ void __launch_bounds__(256) moe_expert_plain(PlainExperts job) {
  constexpr int kParts = Gated ? 2 : 1;
  __shared__ float xs[kExpertDepth][kPlainHeight + 1];
  __shared__ float ws[kParts][kExpertDepth][kPlainWidth];
  const ExpertTile tile = find_tile(job.rows, blockIdx.y, kPlainHeight);
  if (tile.expert < 0) return;
  const int64_t width = job.columns / kParts, n0 = int64_t{blockIdx.x} * kPlainWidth;
  const int tx = threadIdx.x % 16 * 2, ty = threadIdx.x / 16 * 4;
  const int64_t w_first = tile.expert * job.depth * job.columns;
  float sums[kParts][4][2] = {};
  const int64_t depth = tile.first < tile.used ? job.depth : 0;
  for (int64_t k0 = 0; k0 < depth; k0 += kExpertDepth) {
    __syncthreads();
    for (int i = threadIdx.x; i < kPlainHeight * kExpertDepth; i += 256) {
      const int64_t r = tile.first + i / kExpertDepth, k = k0 + i % kExpertDepth;
      xs[i % kExpertDepth][i / kExpertDepth] =
          r < tile.used && k < depth ? load_any(job.x, job.kind, r * depth + k) : 0.f;
    }
    for (int i = threadIdx.x; i < kParts * kExpertDepth * kPlainWidth; i += 256) {
      const int part = i / (kExpertDepth * kPlainWidth), row = i / kPlainWidth % kExpertDepth;
      const int64_t n = n0 + i % kPlainWidth, k = k0 + row;
      const int64_t at = w_first + k * job.columns + part * width + n;
      ws[part][row][i % kPlainWidth] =
          n < width && k < depth ? load_any(job.w, job.w_kind, at) : 0.f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kExpertDepth; ++k)
#pragma unroll
      for (int i = 0; i < kParts * 8; ++i)
        sums[i / 8][i / 2 % 4][i % 2] =
            fmaf(xs[k][ty + i / 2 % 4], ws[i / 8][k][tx + i % 2], sums[i / 8][i / 2 % 4][i % 2]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t r = tile.first + ty + i / 2, n = n0 + tx + i % 2;
    if (r >= tile.end || n >= width) continue;
    float y = sums[0][i / 2][i % 2];
    if (Gated) {
      const float gate = job.rounded(y + job.shift(tile.expert, n));
      y = silu_of(gate) *
          job.rounded(sums[kParts - 1][i / 2][i % 2] + job.shift(tile.expert, width + n));
    }
    store_any(job.out, job.kind, r * width + n, r < tile.used ? y : 0.f);
  }
}

}  // namespace fd

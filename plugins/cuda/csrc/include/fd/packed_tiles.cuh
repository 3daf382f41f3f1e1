// y = x W^T over packed weights for some tens of rows (sm_80 and newer): tensor_tiles.cuh's scheme,
// with weights unpacked between shared memory and tensor cores.
//
// A block has 128 rows of W and 32 * WM of x; its eight warps stand WM along x.
#pragma once
#include "fd/packed_team.cuh"

namespace fd {

constexpr int kPackedRowsOfWarp = 32;

// x of a block in a window: [kWindow / 32, rows, 4] units.
template <typename Weights, int WM>
constexpr int kPackedStage =
    kPackedTiles * kSkinnyStage<Weights> + Weights::kWindow / 8 * kPackedRowsOfWarp * WM;

template <typename Weights>
__device__ __forceinline__ void packed_fetch_w(uint4* stage, const Weights& weights, int tile,
                                               int window) {
  const int warp = threadIdx.x / 32;
  if (tile + warp < (weights.columns + kSkinnyTile - 1) / kSkinnyTile)
    weights.fetch(stage + warp * kSkinnyStage<Weights>, tile + warp, window, threadIdx.x % 32);
}

template <typename Weights, int WM, typename T>
__device__ __forceinline__ void packed_fetch_x(uint4* stage, const SkinnyInput<T>& input, int m0,
                                               int window) {
  constexpr int kRows = kPackedRowsOfWarp * WM, kUnits = Weights::kWindow / 8 * kRows;
  uint4* xs = stage + kPackedTiles * kSkinnyStage<Weights>;
#pragma unroll
  for (int i = threadIdx.x; i < kUnits; i += 256) {
    const int m = m0 + i / 4 % kRows;
    const int64_t k = int64_t{window} * Weights::kWindow + i / 4 / kRows * 32 + i % 4 * 8;
    const bool inside = m < input.rows && k < input.depth;
    copy_async16(xs + i, inside ? input.x + m * input.step + k : input.x, inside ? 16 : 0);
  }
}

// A warp's outputs: WM tiles of 16 along n, four of 8 along m.
template <int WM>
using PackedSums = float[WM][4][4];

template <typename Weights, int WM, typename T>
__device__ __forceinline__ void packed_products(PackedSums<WM>& even, PackedSums<WM>& odd,
                                                const Weights& weights, const uint4* w,
                                                const uint4* x, int lane) {
  constexpr int kRows = kPackedRowsOfWarp * WM;
#pragma unroll
  for (int s = 0; s < Weights::kWindow / 32; ++s) {
    uint4 b[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) b[j] = x[(s * kRows + 8 * j) * 4 + lane];
#pragma unroll
    for (int i = 0; i < WM; ++i) {
      uint32_t a[2][4];
      weights.operands(a, w + i * kSkinnyStage<Weights>, s, lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t low[2] = {b[j].x, b[j].y}, high[2] = {b[j].z, b[j].w};
        mma_16x8x16<T>(even[i][j], a[0], low);
        mma_16x8x16<T>(odd[i][j], a[1], high);
      }
    }
  }
}

template <typename Weights, int WM, typename T>
__device__ __forceinline__ void packed_window(PackedSums<WM>& sum, const Weights& weights,
                                              const uint4* w, const uint4* x, int lane) {
  if constexpr (Weights::kExtra == 0) {
    packed_products<Weights, WM, T>(sum, sum, weights, w, x, lane);
  } else {
    PackedSums<WM> even = {}, odd = {};
    packed_products<Weights, WM, T>(even, odd, weights, w, x, lane);
#pragma unroll
    for (int i = 0; i < WM; ++i) {
      const float2 scale = weights.window_scales(w + i * kSkinnyStage<Weights>, lane);
#pragma unroll
      for (int e = 0; e < 16; ++e) {
        float& to = sum[i][e / 4][e % 4];
        to = fmaf(even[i][e / 4][e % 4] + odd[i][e / 4][e % 4], e % 4 < 2 ? scale.x : scale.y, to);
      }
    }
  }
}

template <typename Weights, typename T, int WM, int S>
__global__ void __launch_bounds__(256, WM == 1 ? 2 : 1)
    linear_packed_tiles(Weights weights, SkinnyInput<T> input, LinearSink sink) {
#if FD_SM80
  constexpr int kStage = kPackedStage<Weights, WM>;
  extern __shared__ uint4 packed_memory[];
  const Team team = Team::here();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wn = warp / WM * WM, wm = warp % WM * kPackedRowsOfWarp;  // first tile; first row of x
  const int tile = blockIdx.y * kPackedTiles;
  const int m0 = static_cast<int>(blockIdx.x) / team.size * kPackedRowsOfWarp * WM;
  const PackedShare share(team, input.depth, Weights::kWindow);
  const PackedParts<WM * 16> parts{reinterpret_cast<float*>(packed_memory + S * kStage)};
  const auto fetch_w = [&](int window, uint4* stage) {
    if (window < share.end) packed_fetch_w(stage, weights, tile, window);
  };
  const auto fetch_x = [&](int window, uint4* stage) {
    if (window < share.end) packed_fetch_x<Weights, WM>(stage, input, m0, window);
    copy_async_commit();
  };
#pragma unroll
  for (int i = 0; i < S - 1; ++i) fetch_w(share.begin + i, packed_memory + i * kStage);
  let_next_start();
  wait_for_inputs();
#pragma unroll
  for (int i = 0; i < S - 1; ++i) fetch_x(share.begin + i, packed_memory + i * kStage);
  PackedSums<WM> sum = {};
  int at = 0, next = S - 1, left = share.slice, slot = 0;
  for (int i = share.begin; i < share.end; ++i) {
    copy_async_wait<S - 2>();
    __syncthreads();
    fetch_w(i + S - 1, packed_memory + next * kStage);
    fetch_x(i + S - 1, packed_memory + next * kStage);
    const uint4* stage = packed_memory + at * kStage;
    const uint4* x = stage + kPackedTiles * kSkinnyStage<Weights> + wm * 4;
    packed_window<Weights, WM, T>(sum, weights, stage + wn * kSkinnyStage<Weights>, x, lane);
    if (--left == 0 || i + 1 == share.end)
      parts.keep(team.size == 1, slot++,
                 [&](int e) -> float& { return sum[e / 16][e / 4 % 4][e % 4]; }),
          left = share.slice;
    at = at + 1 == S ? 0 : at + 1, next = next + 1 == S ? 0 : next + 1;
  }
  parts.finish(team, share, [&](int e, float total) {
    const int64_t n = int64_t{tile + wn + e / 16} * kSkinnyTile + lane / 4 + e % 4 / 2 * 8;
    const int m = m0 + wm + e / 4 % 4 * 8 + lane % 4 * 2 + e % 2;
    if (n < weights.columns && m < input.rows) sink.put(m, n, weights.finish(total, n));
  });
#endif
}

}  // namespace fd

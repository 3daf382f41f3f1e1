// y = x W^T over packed weights for some tens of rows (sm_80 and newer): tensor_tiles.cuh's scheme,
// with weights unpacked between shared memory and tensor cores.
//
// A block has 128 rows of W, in eight tiles, and 32 * WM of x; its eight warps stand WM along x.
// Sums are added up in the order of skinny.cuh: a row's bits are the same from either.
#pragma once
#include "fd/packed_weights.cuh"

namespace fd {

constexpr int kPackedTiles = 8, kPackedRowsOfWarp = 32;

// x of a block in a window: [kWindow / 32, rows, 4] units.
template <typename Weights, int WM>
constexpr int kPackedStage =
    kPackedTiles * kSkinnyStage<Weights> + Weights::kWindow / 8 * kPackedRowsOfWarp * WM;

template <typename Weights, int WM, typename T>
__device__ __forceinline__ void packed_fetch(uint4* stage, const Weights& weights,
                                             const SkinnyInput<T>& input, int tile, int m0,
                                             int window) {
  constexpr int kRows = kPackedRowsOfWarp * WM, kUnits = Weights::kWindow / 8 * kRows;
  const int warp = threadIdx.x / 32;
  if (tile + warp < (weights.columns + kSkinnyTile - 1) / kSkinnyTile)
    weights.fetch(stage + warp * kSkinnyStage<Weights>, tile + warp, window, threadIdx.x % 32);
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

template <int WM>
__device__ __forceinline__ void packed_add(PackedSums<WM>& total, PackedSums<WM>& sum) {
#pragma unroll
  for (int e = 0; e < WM * 16; ++e) {
    total[e / 16][e / 4 % 4][e % 4] += sum[e / 16][e / 4 % 4][e % 4];
    sum[e / 16][e / 4 % 4][e % 4] = 0.f;
  }
}

template <typename Weights, int WM>
__device__ __forceinline__ void packed_store(const PackedSums<WM>& total, const Weights& weights,
                                             int64_t n0, int64_t m0, int64_t rows,
                                             const LinearSink& sink) {
#pragma unroll
  for (int e = 0; e < WM * 16; ++e) {
    const int64_t n = n0 + e / 16 * kSkinnyTile + e % 4 / 2 * 8, m = m0 + e / 4 % 4 * 8 + e % 2;
    if (n < weights.columns && m < rows)
      sink.put(m, n, weights.finish(total[e / 16][e / 4 % 4][e % 4], n));
  }
}

template <typename Weights, typename T, int WM, int S>
__global__ void __launch_bounds__(256)
    linear_packed_tiles(Weights weights, SkinnyInput<T> input, LinearSink sink) {
#if FD_SM80
  constexpr int kStage = kPackedStage<Weights, WM>;
  extern __shared__ uint4 packed_memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wn = warp / WM * WM, wm = warp % WM * kPackedRowsOfWarp;  // first tile; first row of x
  const int tile = blockIdx.y * kPackedTiles, m0 = blockIdx.x * kPackedRowsOfWarp * WM;
  const int windows = static_cast<int>(weights.windows);
  const int slice =
      static_cast<int>(skinny_slice(input.depth, Weights::kWindow) / Weights::kWindow);
  wait_for_inputs();
  const auto fetch = [&](int window) {
    if (window < windows)
      packed_fetch<Weights, WM>(packed_memory + window % S * kStage, weights, input, tile, m0,
                                window);
    copy_async_commit();
  };
#pragma unroll
  for (int i = 0; i < S - 1; ++i) fetch(i);
  PackedSums<WM> total = {}, sum = {};
  for (int i = 0; i < windows; ++i) {
    copy_async_wait<S - 2>();
    __syncthreads();
    fetch(i + S - 1);
    const uint4* stage = packed_memory + i % S * kStage;
    const uint4* x = stage + kPackedTiles * kSkinnyStage<Weights> + wm * 4;
    packed_window<Weights, WM, T>(sum, weights, stage + wn * kSkinnyStage<Weights>, x, lane);
    if ((i + 1) % slice == 0 || i + 1 == windows) packed_add<WM>(total, sum);
  }
  packed_store<Weights, WM>(total, weights, int64_t{tile + wn} * kSkinnyTile + lane / 4,
                            m0 + wm + lane % 4 * 2, input.rows, sink);
#endif
}

}  // namespace fd

// y = x W^T over packed weights for some tens of rows on sm_90a: weights become the first operands
// of products of four warps in registers, x lies in shared memory.
//
// A block has 128 rows of W, a tile for each of its eight warps, and 64 of x. A warp copies its own
// codes some windows ahead; x comes as an image of its shared memory, made by a kernel of its own:
// its steps of k must lie as the lanes hold those of W, step 8 * t + 4 * h + 2 * q + e of 32 at
// 16 * h + 8 * q + 2 * t + e.
#pragma once
#include "fd/bulk.cuh"
#include "fd/packed_team.cuh"

namespace fd {

constexpr int kGroupRows = 64, kGroupSums = 32;
constexpr int kGroupTile = kGroupRows * 8;  // units of 16 bytes of 64 rows and steps of x

// Units of x of a block in a window.
template <typename Weights>
constexpr int kGroupInput = Weights::kWindow / 64 * kGroupTile;

// Bytes of a block's shared memory: x and codes of `stages` windows, sums, barriers.
template <typename Weights>
constexpr int group_shared(int stages) {
  const int units = kGroupInput<Weights> + kPackedTiles * kSkinnyStage<Weights>;
  return stages * units * 16 + PackedParts<kGroupSums>::kSlot * 4 + stages * 8;
}

// The image of x: for every 64 rows and 64 steps a tile by rows (hopper.cuh), zeros where x ends.
// `across`: tiles along k. A thread has a unit of 8 steps.
template <typename T>
__global__ void linear_packed_image(SkinnyInput<T> input, int across, uint32_t* image) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int unit = static_cast<int>(i % (across * 8));
  const int64_t row = i / (across * 8), k = unit * 8;
  if (row >= int64_t{(input.rows + kGroupRows - 1) / kGroupRows} * kGroupRows) return;
  uint4 held{};
  if (row < input.rows && k < input.depth)
    held = *reinterpret_cast<const uint4*>(input.x + row * input.step + k);
  const int64_t tile = row / kGroupRows * across + unit / 8;
  const int t = unit % 4, chunk = unit % 8 / 4 * 4, turn = static_cast<int>(row % 8);
  uint32_t* to = image + (tile * kGroupTile + row % kGroupRows * 8) * 4 + t;
  const uint32_t pairs[4] = {held.x, held.y, held.z, held.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) to[((chunk + j) ^ turn) * 4] = pairs[j];
}

// c = w x^T, plus c where `add`: w [64 x 16] in the registers of four warps, x [64 x 16] by rows.
template <typename T>
__device__ __forceinline__ void group_product(float (&c)[kGroupSums], const uint32_t (&w)[4],
                                              uint64_t x, bool add) {
#if FD_SM90A
#define FD_GROUP_PRODUCT(type)                                                       \
  asm volatile(                                                                      \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                   \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" FD_WGMMA_64_R \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"                                 \
      : FD_WGMMA_64_C                                                                \
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x), "r"(static_cast<int>(add)))
  if constexpr (std::is_same_v<T, bf16>) FD_GROUP_PRODUCT("bf16");
  if constexpr (std::is_same_v<T, f16>) FD_GROUP_PRODUCT("f16");
#undef FD_GROUP_PRODUCT
#endif
}

// A window's products onto `even` and `odd`, which may be the same; from zero where `fresh`.
template <typename Weights, typename T>
__device__ __forceinline__ void group_products(float (&even)[kGroupSums], float (&odd)[kGroupSums],
                                               const Weights& weights, const uint4* w, uint64_t x,
                                               int lane, bool fresh) {
  constexpr int kSubs = Weights::kWindow / 32;
  uint32_t a[2][2][4];
#pragma unroll
  for (int s = 0; s < kSubs; ++s) {
    weights.operands(a[s % 2], w, s, lane);
    const uint64_t tile = x + s / 2 * kGroupTile + s % 2 * (64 >> 4);  // in units of 16 bytes
    products_begin();
    group_product<T>(even, a[s % 2][0], tile, !fresh || s > 0);
    group_product<T>(odd, a[s % 2][1], tile + (32 >> 4), !fresh || s > 0);
    products_commit();
    if (s + 1 < kSubs) products_wait<1>();
  }
  products_wait<0>();
}

template <typename Weights, typename T>
__device__ __forceinline__ void group_window(float (&sum)[kGroupSums], const Weights& weights,
                                             const uint4* w, uint64_t x, int lane) {
  if constexpr (Weights::kExtra == 0) {
    group_products<Weights, T>(sum, sum, weights, w, x, lane, false);
  } else {
    float even[kGroupSums], odd[kGroupSums];
    group_products<Weights, T>(even, odd, weights, w, x, lane, true);
    const float2 scale = weights.window_scales(w, lane);
#pragma unroll
    for (int e = 0; e < kGroupSums; ++e)
      sum[e] = fmaf(even[e] + odd[e], e % 4 < 2 ? scale.x : scale.y, sum[e]);
  }
}

// `image`: of x [rows, depth].
template <typename Weights, typename T, int S>
__global__ void __launch_bounds__(256, 2)
    linear_packed_groups(Weights weights, const uint4* image, int rows, int64_t depth,
                         LinearSink sink) {
#if FD_SM90A
  constexpr int kStage = kSkinnyStage<Weights>, kInput = kGroupInput<Weights>;
  extern __shared__ __align__(1024) uint4 group_memory[];
  const Team team = Team::here();
  const PackedShare share(team, depth, Weights::kWindow);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile = blockIdx.y * kPackedTiles + warp, group = blockIdx.x / team.size;
  uint4* const ring = group_memory + S * kInput + warp * S * kStage;
  const PackedParts<kGroupSums> parts{
      reinterpret_cast<float*>(group_memory + S * (kInput + kPackedTiles * kStage))};
  auto* arrived = reinterpret_cast<uint64_t*>(parts.sums + parts.kSlot);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S; ++i) barrier_init(arrived + i, 1);
    barrier_init_done();
  }
  const uint4* const from = image + int64_t{group} * share.windows * kInput;
  const bool there = int64_t{tile} * kSkinnyTile < weights.columns;
  const auto fetch = [&](int window, int slot) {
    if (there && window < share.end) weights.fetch(ring + slot * kStage, tile, window, lane);
    copy_async_commit();
  };
  const auto fetch_x = [&](int window, int slot) {
    if (threadIdx.x != 0 || window >= share.end) return;
    barrier_expect(arrived + slot, kInput * 16);
    copy_bulk(group_memory + slot * kInput, from + int64_t{window} * kInput, kInput * 16,
              arrived + slot);
  };
#pragma unroll
  for (int i = 0; i < S - 1; ++i) fetch(share.begin + i, i);
  let_next_start();
  wait_for_inputs();
  for (int i = 0; i < S - 1; ++i) fetch_x(share.begin + i, i);
  float sum[kGroupSums] = {};
  int at = 0, next = S - 1, phase = 0, left = share.slice, slot = 0;
  for (int i = share.begin; i < share.end; ++i) {
    copy_async_wait<S - 2>();
    __syncthreads();
    fetch(i + S - 1, next);
    fetch_x(i + S - 1, next);
    barrier_wait(arrived + at, phase);
    group_window<Weights, T>(sum, weights, ring + at * kStage,
                             tile_by_rows(shared32(group_memory + at * kInput)), lane);
    if (--left == 0 || i + 1 == share.end) {
      parts.keep(team.size == 1, slot++, [&](int e) -> float& { return sum[e]; });
      left = share.slice;
    }
    phase ^= at + 1 == S;
    at = at + 1 == S ? 0 : at + 1, next = next + 1 == S ? 0 : next + 1;
  }
  parts.finish(team, share, [&](int e, float total) {
    const int64_t n = int64_t{tile} * kSkinnyTile + lane / 4 + e % 4 / 2 * 8;
    const int m = group * kGroupRows + e / 4 * 8 + lane % 4 * 2 + e % 2;
    if (n < weights.columns && m < rows) sink.put(m, n, weights.finish(total, n));
  });
#endif
}

}  // namespace fd

// Products of many rows an expert with packed weights on sm_90a: expert_sm90.cuh's tiles, for which
// four warps unpack codes into shared memory. Scales of groups are multiplied in there, which
// rounds a weight once to T; those of whole rows are taken at the end.
#pragma once
#include "fd/expert_packed.cuh"
#include "fd/expert_sm90.cuh"

namespace fd {

// As PackedExperts, for the warpgroups of WideTeam.
template <typename Weights_, typename T_, bool Gated>
struct WidePacked {
  using T = T_;
  using Weights = Weights_;
  static constexpr bool kGated = Gated, kByRows = true;
  static constexpr int kStages = 3, kParts = Gated ? 2 : 1;
  static constexpr int kHalves = Weights::kWindow / kWideDepth;  // stages of a window
  PackedExperts<Weights, T> all;
  ExpertRows rows;
  int64_t columns;  // of one matrix
  T* out;

  __device__ __forceinline__ int64_t width() const { return columns; }
  __device__ __forceinline__ int steps() const { return all.weights.windows * kHalves; }
  __device__ __forceinline__ float finish(float sum, int expert, int part, int64_t n) const {
    return all.template of_expert<kParts>(expert).finish(sum, part * columns + n);
  }
};

// Codes of a warp's four tiles of 16 rows of W under way: windows of a ring.
template <typename Weights>
constexpr int kWideRing = 256 / Weights::kWindow;
constexpr int kWideTilesOfWarp = kWideColumns / kSkinnyTile / 4;
template <typename Weights>
constexpr int kWideCodes = kWideRing<Weights> * kWideTilesOfWarp * kSkinnyStage<Weights>;  // units

template <typename Job>
struct WidePackedShared : WideShared<Job::kStages> {
  uint4 codes[4][kWideCodes<typename Job::Weights>];
};

// Two weights, codes as T, under a scale.
template <typename T>
__device__ __forceinline__ uint32_t scaled2(uint32_t codes, float scale);
template <>
__device__ __forceinline__ uint32_t scaled2<bf16>(uint32_t codes, float scale) {
  const __nv_bfloat162 s = __float2bfloat162_rn(scale);  // is one already
  const __nv_bfloat162 y = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&codes), s);
  return *reinterpret_cast<const uint32_t*>(&y);
}
template <>
__device__ __forceinline__ uint32_t scaled2<f16>(uint32_t codes, float scale) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&codes));
  return pack2<f16>(pair.x * scale, pair.y * scale);
}

// One of the four warps that unpack; its first lane asks for x where it is the first warp.
template <typename Job>
struct WideUnpack {
  using Weights = typename Job::Weights;
  using T = typename Job::T;
  static constexpr int kRing = kWideRing<Weights>, kStage = kSkinnyStage<Weights>;
  const Job& job;
  const WideMaps& maps;
  WidePackedShared<Job>& sh;
  const RowGroup* groups;
  int items, across;
  uint4* codes;  // the warp's ring
  int slot = 0;
  WideTurn<Job::kStages> turn;
  // To be fetched.
  int item, window = 0;
  WideItem at;
  Weights weights;

  __device__ __forceinline__ WideUnpack(const Job& j, const WideMaps& m, WidePackedShared<Job>& s,
                                        const RowGroup* g, int n, int a)
      : job(j),
        maps(m),
        sh(s),
        groups(g),
        items(n),
        across(a),
        codes(s.codes[threadIdx.x / kWarp]),
        item(blockIdx.x),
        at(g, min(item, n - 1), a, kWideEach<Job>),
        weights(job.all.template of_expert<Job::kParts>(at.group.expert)) {}

  // Tile of W in place `i` of the warp's four, and whether there is one.
  __device__ __forceinline__ bool tile_of(int i, int* tile) const {
    const int place = threadIdx.x / kWarp * kWideTilesOfWarp + i, all = job.all.tiles();
    const int own = at.column / kSkinnyTile + (Job::kGated ? place % 8 : place);
    *tile = own + (Job::kGated ? place / 8 * all : 0);
    return own < all;
  }
  __device__ __forceinline__ void fetch() {
    uint4* to = codes + slot * kWideTilesOfWarp * kStage;
    if (item < items) {
#pragma unroll
      for (int i = 0; i < kWideTilesOfWarp; ++i) {
        int tile;
        if (tile_of(i, &tile)) weights.fetch(to + i * kStage, tile, window, threadIdx.x % kWarp);
      }
    }
    copy_async_commit();
    slot = slot + 1 == kRing ? 0 : slot + 1;
    if (++window < job.all.weights.windows) return;
    window = 0, item += gridDim.x;
    if (item >= items) return;
    at = WideItem(groups, item, across, kWideEach<Job>);
    weights = job.all.template of_expert<Job::kParts>(at.group.expert);
  }

  // Sub-window s of a tile's codes to rows [row, row + 16) of a stage's 256.
  __device__ __forceinline__ void unpack(char* w, const uint4* from, int row, int s) const {
    const int lane = threadIdx.x % kWarp;
    uint32_t a[2][4];
    weights.operands(a, from, s, lane);
    float2 scale{};
    if constexpr (Weights::kExtra != 0) scale = weights.window_scales(from, lane);
#pragma unroll
    for (int hi = 0; hi < 2; ++hi) {
      uint4 real{a[0][hi], a[0][2 + hi], a[1][hi], a[1][2 + hi]};
      if constexpr (Weights::kExtra != 0) {
        const float own = hi ? scale.y : scale.x;
        real.x = scaled2<T>(real.x, own), real.y = scaled2<T>(real.y, own);
        real.z = scaled2<T>(real.z, own), real.w = scaled2<T>(real.w, own);
      }
      const int r = row + lane / 4 + 8 * hi, chunk = (s % 2 * 4 + lane % 4) ^ (r % 8);
      *reinterpret_cast<uint4*>(w + r * 128 + chunk * 16) = real;
    }
  }
  // Stage `half` of a window whose codes are there.
  __device__ __forceinline__ void fill(const uint4* from, int first_row, int k, int half) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    WideStage& to = sh.stage[turn.stage];
    barrier_wait(&sh.empty[turn.stage], turn.phase ^ 1);
    if (threadIdx.x == 0) {
      barrier_expect(&sh.full[turn.stage], sizeof(to.x));
      copy_box(to.x, &maps.x, &sh.full[turn.stage], k + half * kWideDepth, first_row, 0, 0);
    }
#pragma unroll 2
    for (int i = 0; i < kWideTilesOfWarp * 2; ++i)
      unpack(to.w, from + i / 2 * kStage, (warp * kWideTilesOfWarp + i / 2) * kSkinnyTile,
             half * 2 + i % 2);
    stores_for_async();
    __syncwarp();
    if (lane == 0) barrier_arrive(&sh.full[turn.stage]);
    turn.next();
  }
  __device__ __forceinline__ void run() {
#pragma unroll
    for (int i = 0; i < kRing; ++i) fetch();
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
      const int row = WideItem(groups, i, across, kWideEach<Job>).group.first;
      for (int w = 0; w < job.all.weights.windows; ++w) {
        copy_async_wait<kRing - 1>();
        __syncwarp();
        const uint4* from = codes + slot * kWideTilesOfWarp * kStage;
#pragma unroll
        for (int half = 0; half < Job::kHalves; ++half) fill(from, row, w * Weights::kWindow, half);
        __syncwarp();
        fetch();
      }
    }
  }
};

// Dynamic shared memory: WidePackedShared at a multiple of 1024 bytes, groups [room].
template <typename Job>
__global__ void __launch_bounds__(kWideThreads, 1)
    moe_packed_sm90_tiles(Job job, const __grid_constant__ WideMaps maps) {
#if FD_SM90A
  extern __shared__ char wide_memory[];
  auto& sh = *reinterpret_cast<WidePackedShared<Job>*>(wide_aligned(wide_memory));
  auto* groups = reinterpret_cast<RowGroup*>(&sh + 1);
  sh.begin(5);  // x and four warps
  if (!job.all.at_once) wait_for_inputs();
  constexpr int kEach = kWideEach<Job>;
  const int across = static_cast<int>((job.columns + kEach - 1) / kEach);
  const int items = list_groups<kWideThreads>(job.rows, kWideRows, job.all.room, groups) * across;
  if (job.all.at_once) wait_for_inputs();
  if (threadIdx.x < 128) {
    fewer_registers<88>();
    if (static_cast<int>(blockIdx.x) < items)
      WideUnpack<Job>(job, maps, sh, groups, items, across).run();
  } else {
    more_registers<208>();
    WideTeam<Job> team{job, sh, wide_team(), {}, {}};
    team.run(groups, items, across, kEach);
  }
  clear_rest(job.rows, job.columns, job.out);
#endif
}

}  // namespace fd

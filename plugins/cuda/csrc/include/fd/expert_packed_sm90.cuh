// Products of many rows an expert with packed weights on sm_90a: expert_sm90.cuh's tiles, for which
// eight warps unpack codes into shared memory. Scales of groups are multiplied in there, which
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

// Warps that unpack, tiles of 16 rows of W of each, and windows of their codes under way.
constexpr int kUnpackWarps = 8, kUnpackThreads = 32 * kUnpackWarps + 128 * kWideTeams;
constexpr int kUnpackTiles = kWideColumns / kSkinnyTile / kUnpackWarps;
template <typename Weights>
constexpr int kWideRing = 256 / Weights::kWindow;
template <typename Weights>
constexpr int kWideCodes = kWideRing<Weights> * kUnpackTiles * kSkinnyStage<Weights>;  // units

template <typename Job>
struct WidePackedShared : WideShared<Job::kStages> {
  alignas(128) uint4 codes[kUnpackWarps][kWideCodes<typename Job::Weights>];
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

// One of the warps that unpack; the first one's first lane asks for x.
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
  // To be fetched: the windows from `first` of an expert's on, of each tile; below 0: there is
  // none.
  int item, window = 0, first[kUnpackTiles];
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
        weights(j.all.weights) {
    enter();
  }

  __device__ __forceinline__ WideItem at(int i) const {
    return WideItem(groups, i, across, kWideEach<Job>);
  }
  // At the first window of `item`.
  __device__ __forceinline__ void enter() {
    const int place = threadIdx.x / kWarp * kUnpackTiles, all = job.all.tiles();
    const WideItem next = at(min(item, items - 1));
    weights = job.all.template of_expert<Job::kParts>(next.group.expert);
#pragma unroll
    for (int i = 0; i < kUnpackTiles; ++i) {
      const int tile = next.column / kSkinnyTile + (Job::kGated ? (place + i) % 8 : place + i);
      const int index = tile + (Job::kGated ? (place + i) / 8 * all : 0);
      first[i] = item < items && tile < all ? index * weights.windows : -1;
    }
  }
  __device__ __forceinline__ void fetch() {
    uint4* to = codes + slot * kUnpackTiles * kStage;
#pragma unroll
    for (int i = 0; i < kUnpackTiles; ++i)
      if (first[i] >= 0) weights.fetch(to + i * kStage, 0, first[i] + window, threadIdx.x % kWarp);
    copy_async_commit();
    slot = slot + 1 == kRing ? 0 : slot + 1;
    if (++window < weights.windows) return;
    window = 0, item += gridDim.x;
    enter();
  }

  // Half a window of a tile's codes to rows [row, row + 16) of a stage's 256. All is read before
  // anything is written: the compiler cannot know that these are not the same places.
  __device__ __forceinline__ void unpack(char* w, const uint4* from, int row, int half) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4;
    uint32_t a[2][2][4];
#pragma unroll
    for (int s = 0; s < 2; ++s) weights.operands(a[s], from, half * 2 + s, lane);
    float2 scale{};
    if constexpr (Weights::kExtra != 0) scale = weights.window_scales(from, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int s = i / 2, hi = i % 2;
      uint4 real{a[s][0][hi], a[s][0][2 + hi], a[s][1][hi], a[s][1][2 + hi]};
      if constexpr (Weights::kExtra != 0) {
        const float own = hi ? scale.y : scale.x;
        real.x = scaled2<T>(real.x, own), real.y = scaled2<T>(real.y, own);
        real.z = scaled2<T>(real.z, own), real.w = scaled2<T>(real.w, own);
      }
      const int chunk = (s * 4 + lane % 4) ^ g;  // rows are swizzled by eights
      *reinterpret_cast<uint4*>(w + (row + g + 8 * hi) * 128 + chunk * 16) = real;
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
#pragma unroll
    for (int i = 0; i < kUnpackTiles; ++i)
      unpack(to.w, from + i * kStage, (warp * kUnpackTiles + i) * kSkinnyTile, half);
    stores_for_async();
    __syncwarp();
    if (lane == 0) barrier_arrive(&sh.full[turn.stage]);
    turn.next();
  }
  __device__ __forceinline__ void run() {
#pragma unroll
    for (int i = 0; i < kRing; ++i) fetch();
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
      const int row = at(i).group.first;
      for (int w = 0; w < job.all.weights.windows; ++w) {
        copy_async_wait<kRing - 1>();
        __syncwarp();
        const uint4* from = codes + slot * kUnpackTiles * kStage;
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
__global__ void __launch_bounds__(kUnpackThreads, 1)
    moe_packed_sm90_tiles(Job job, const __grid_constant__ WideMaps maps) {
#if FD_SM90A
  extern __shared__ char wide_memory[];
  auto& sh = *reinterpret_cast<WidePackedShared<Job>*>(wide_aligned(wide_memory));
  auto* groups = reinterpret_cast<RowGroup*>(&sh + 1);
  sh.begin(1 + kUnpackWarps);  // x and the warps' parts
  if (!job.all.at_once) wait_for_inputs();
  constexpr int kEach = kWideEach<Job>;
  const int across = static_cast<int>((job.columns + kEach - 1) / kEach);
  const int items = list_groups<kUnpackThreads>(job.rows, kWideRows, job.all.room, groups) * across;
  if (job.all.at_once) wait_for_inputs();
  if (threadIdx.x < 32 * kUnpackWarps) {
    fewer_registers<56>();
    if (static_cast<int>(blockIdx.x) < items)
      WideUnpack<Job>(job, maps, sh, groups, items, across).run();
  } else {
    more_registers<200>();
    WideTeam<Job> team{job, sh, wide_team(32 * kUnpackWarps), {}, {}};
    team.run(groups, items, across, kEach);
  }
  clear_rest(job.rows, job.columns, job.out);
#endif
}

}  // namespace fd

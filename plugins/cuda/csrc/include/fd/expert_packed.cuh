// Products of experts' rows with packed weights (sm_80 and newer): skinny.cuh's stream of codes
// past groups of up to 32 rows of an expert.
//
// Blocks stay and take a share each of (group, 16 rows of W). Sums are those of the dense kernels,
// in their order: eighths of K, one to a warp, added one after the other. A row's bits depend
// neither on the size of groups nor on the other rows.
#pragma once
#include "fd/activation.cuh"
#include "fd/expert_groups.cuh"
#include "fd/packed_weights.cuh"

namespace fd {

// y[r] = x[r] W[e(r)]^T, or, of `Parts` 2, silu(g) * u with g and u the products with an expert's
// two matrices, which lie behind each other. `weights`: the stack of all, from the first matrix on;
// its `columns` are those of one.
template <typename Weights, typename T>
struct PackedExperts {
  ExpertRows rows;  // sorted by expert
  const T* x;       // [rows, depth]
  int64_t depth;
  Weights weights;
  T* out;        // [rows, columns]
  int each;      // rows of a group
  int room;      // groups that there can be
  bool at_once;  // `rows.numbers` are there before the kernel ahead has ended

  __host__ __device__ __forceinline__ int tiles() const {
    return static_cast<int>((weights.columns + kSkinnyTile - 1) / kSkinnyTile);
  }
  template <int Parts>
  __device__ __forceinline__ Weights of_expert(int64_t e) const {
    Weights own = weights;
    const int64_t windows = e * Parts * tiles() * weights.windows;
    own.codes += windows * (32 * Weights::kUnits);
    own.scales += Weights::kExtra == 0 ? e * Parts * weights.columns : windows * 8;
    return own;
  }
};

// silu(g) * u of rounded g and u.
template <typename T>
__device__ __forceinline__ float gated(float gate, float value) {
  return silu_of(to_float(from_float<T>(gate))) * to_float(from_float<T>(value));
}

// How a kernel for groups of 8 * RT rows stores and fetches. `kStages`: windows of a warp's ring.
template <typename Weights_, int RT_, int Parts_>
struct PackedShape {
  using Weights = Weights_;
  static constexpr int RT = RT_, kParts = Parts_, kRows = 8 * RT, kStage = kSkinnyStage<Weights>;
  static constexpr int kStages = Weights::kDeep * (RT == 1 ? 8 : RT == 2 ? 5 : 7) / 8;
  static constexpr int kSubs = Weights::kWindow / 32;
  static constexpr int kSums = kSkinnyTile * kRows;  // of a warp and part

  // Bytes of a block's shared memory: rings, rows of x, sums, a zero, the list of groups.
  static __host__ __device__ constexpr int64_t shared(int64_t depth, int each, int room) {
    const int64_t warp = kStages * kStage + skinny_x_units<Weights>(depth, each);
    const int64_t units = kSkinnyWarps * (warp + kParts * kSums / 4) + 1;
    return units * 16 + room * int64_t{sizeof(RowGroup)};
  }
};

// Where a block is in its share of (group, column tile, part, window): windows are fetched ahead of
// those that are multiplied.
template <typename Shape, typename T>
struct PackedCursor {
  using Weights = typename Shape::Weights;
  const PackedExperts<Weights, T>& job;
  const RowGroup* groups;
  const WindowRange& range;
  int tiles, group, tile, left, part, window;
  Weights weights;

  __device__ __forceinline__ PackedCursor(const PackedExperts<Weights, T>& j, const RowGroup* g,
                                          const WindowRange& r, int begin, int count)
      : job(j),
        groups(g),
        range(r),
        tiles(j.tiles()),
        group(begin / tiles),
        tile(begin % tiles),
        left(count),
        part(0),
        window(0),
        weights(j.weights) {
    if (left > 0) weights = own();
  }
  __device__ __forceinline__ Weights own() const {
    return job.template of_expert<Shape::kParts>(groups[group].expert);
  }
  __device__ __forceinline__ void fetch(uint4* slot, int lane) {
    if (left > 0 && range.count > 0)
      weights.fetch(slot, part * tiles + tile, range.first + window, lane);
    copy_async_commit();
    if (++window < range.count) return;
    window = 0;
    if (++part < Shape::kParts) return;
    part = 0;
    if (--left <= 0 || ++tile < tiles) return;
    tile = 0, ++group, weights = own();
  }
};

// sums += a window's products; `x`: this lane's units, steps of 32 `step` apart, `live` tiles of
// eight rows. In the order of SkinnyWindow.
template <typename Shape, typename T>
__device__ __forceinline__ void packed_add(float (&sum)[Shape::RT][4],
                                           const typename Shape::Weights& weights,
                                           const uint4* slot, const uint4* x, int step, int live,
                                           int lane) {
  constexpr int kSubs = Shape::kSubs;
  uint32_t a[kSubs][2][4];
#pragma unroll
  for (int s = 0; s < kSubs; ++s) weights.operands(a[s], slot, s, lane);
  float2 scale{};
  if constexpr (Shape::Weights::kExtra != 0) scale = weights.window_scales(slot, lane);
#pragma unroll
  for (int j = 0; j < Shape::RT; ++j) {
    if (j >= live) break;
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int s = 0; s < kSubs; ++s) {
      const uint4 own = x[s * step + 32 * j];
      const uint32_t b[2][2] = {{own.x, own.y}, {own.z, own.w}};
      if constexpr (Shape::Weights::kExtra == 0) {
        mma_16x8x16<T>(sum[j], a[s][0], b[0]);
        mma_16x8x16<T>(sum[j], a[s][1], b[1]);
      } else {
        mma_16x8x16<T>(even, a[s][0], b[0]);
        mma_16x8x16<T>(odd, a[s][1], b[1]);
      }
    }
    if constexpr (Shape::Weights::kExtra != 0)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sum[j][i] = fmaf(even[i] + odd[i], i < 2 ? scale.x : scale.y, sum[j][i]);
  }
}

// Adds the warps' sums of a tile, [part][warp][row of x][row of W], in their order and stores them.
template <typename Shape, typename T>
__device__ __forceinline__ void put_group(const PackedExperts<typename Shape::Weights, T>& job,
                                          const typename Shape::Weights& weights, const float* sums,
                                          const RowGroup& group, int rows, int tile) {
  const int64_t n = int64_t{tile} * kSkinnyTile + threadIdx.x % kSkinnyTile;
  if (n >= weights.columns) return;
#pragma unroll
  for (int m = threadIdx.x / kSkinnyTile; m < Shape::kRows; m += 32 * kSkinnyWarps / kSkinnyTile) {
    if (m >= rows) return;
    float total[Shape::kParts] = {};
#pragma unroll
    for (int p = 0; p < Shape::kParts; ++p) {
      const float* from =
          sums + p * kSkinnyWarps * Shape::kSums + m * kSkinnyTile + n % kSkinnyTile;
#pragma unroll
      for (int w = 0; w < kSkinnyWarps; ++w) total[p] += from[w * Shape::kSums];
      total[p] = weights.finish(total[p], p * weights.columns + n);
    }
    const float y = Shape::kParts == 2 ? gated<T>(total[0], total[Shape::kParts - 1]) : total[0];
    job.out[(group.first + m) * weights.columns + n] = from_float<T>(y);
  }
}

// One group after another: its rows of x, then the tiles of W that fall to the block.
template <typename Shape, typename T>
struct PackedBlock {
  using Weights = typename Shape::Weights;
  const PackedExperts<Weights, T>& job;
  PackedCursor<Shape, T>& ahead;
  const WindowRange& range;
  uint4 *ring, *xs, *zeros;  // the warp's ring and rows
  float* sums;
  int slot;  // of the ring: to be multiplied next

  // All of the block's `count` items, from number `begin` on.
  __device__ __forceinline__ void run(const RowGroup* groups, int begin, int count) {
    const int tiles = job.tiles(), lane = threadIdx.x % 32;
    int tile = begin % tiles, at = begin / tiles, loaded = -1, rows = 0;
    RowGroup group{};
    Weights weights = job.weights;
    for (; count > 0; --count) {
      if (loaded != at) {
        group = groups[at], rows = min(job.each, group.left), loaded = at;
        weights = job.template of_expert<Shape::kParts>(group.expert);
        load(group, rows, lane);
      }
      __syncthreads();  // the sums before have been read
      multiply(weights, rows, lane);
      __syncthreads();
      put_group<Shape>(job, weights, sums, group, rows, tile);
      if (++tile == tiles) tile = 0, ++at;
    }
  }
  // Rows of a group in shared memory: whole tiles of eight, but for one tile its rows alone.
  static __device__ __forceinline__ int stored(int rows) {
    return Shape::RT == 1 ? rows : (rows + 7) / 8 * 8;
  }
  __device__ __forceinline__ void load(const RowGroup& group, int rows, int lane) const {
    const T* from = job.x + int64_t{group.first} * job.depth;
    const SkinnyInput<T> input{from, job.depth, job.depth, rows, stored(rows), 1, true};
    __syncwarp();
    skinny_load_x<Weights>(xs, input, 0, range, lane, [](const uint4&, int, int) {});
  }
  __device__ __forceinline__ void multiply(const Weights& weights, int rows, int lane) {
    constexpr int kStages = Shape::kStages, kStage = Shape::kStage;
    // Lanes without a row read zeros, always the same.
    const bool has_row = Shape::RT > 1 || lane / 4 < rows;
    const int step = has_row ? 4 * stored(rows) : 0, live = (rows + 7) / 8;
#pragma unroll
    for (int p = 0; p < Shape::kParts; ++p) {
      float sum[Shape::RT][4] = {};
      const uint4* x = has_row ? xs + lane : zeros;
      for (int i = 0; i < range.count; ++i) {
        copy_async_wait<kStages - 1>();
        __syncwarp();
        packed_add<Shape, T>(sum, weights, ring + slot * kStage, x, step, live, lane);
        __syncwarp();
        ahead.fetch(ring + slot * kStage, lane);
        x += Shape::kSubs * step;
        slot = slot + 1 == kStages ? 0 : slot + 1;
      }
      float* mine = sums + (p * kSkinnyWarps + threadIdx.x / 32) * Shape::kSums;
#pragma unroll
      for (int e = 0; e < Shape::RT * 4; ++e)
        mine[(e / 4 * 8 + lane % 4 * 2 + e % 2) * kSkinnyTile + lane / 4 + e % 4 / 2 * 8] =
            sum[e / 4][e % 4];
    }
  }
};

template <typename Shape, typename T>
__global__ void __launch_bounds__(32 * kSkinnyWarps, Shape::RT == 4 ? 1 : 2)
    moe_packed_rows(PackedExperts<typename Shape::Weights, T> job) {
#if FD_SM80
  constexpr int kRing = Shape::kStages * Shape::kStage;
  extern __shared__ uint4 expert_memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t x_units = skinny_x_units<typename Shape::Weights>(job.depth, job.each);
  uint4* const after = expert_memory + kSkinnyWarps * kRing;
  auto* const sums = reinterpret_cast<float*>(after + kSkinnyWarps * x_units);
  auto* const zeros = reinterpret_cast<uint4*>(sums + Shape::kParts * kSkinnyWarps * Shape::kSums);
  auto* const groups = reinterpret_cast<RowGroup*>(zeros + 1);
  if (!job.at_once) wait_for_inputs();
  if (threadIdx.x == 0) *zeros = uint4{};
  const int listed = list_groups<32 * kSkinnyWarps>(job.rows, job.each, job.room, groups);
  const int items = listed * job.tiles(), blocks = gridDim.x, block = blockIdx.x;
  const int more = items % blocks, begin = block * (items / blocks) + min(block, more);
  const int count = items / blocks + (block < more ? 1 : 0);
  const WindowRange range = skinny_range(job.depth, Shape::Weights::kWindow, warp);
  PackedCursor<Shape, T> ahead(job, groups, range, begin, count);
  uint4* const ring = expert_memory + warp * kRing;
#pragma unroll
  for (int i = 0; i < Shape::kStages; ++i) ahead.fetch(ring + i * Shape::kStage, lane);
  if (job.at_once) wait_for_inputs();
  let_next_start();
  clear_rest(job.rows, job.weights.columns, job.out);
  PackedBlock<Shape, T> own{job, ahead, range, ring, after + warp * x_units, zeros, sums, 0};
  own.run(groups, begin, count);
#endif
}

}  // namespace fd

// Products of experts' rows with packed weights (sm_80 and newer): skinny.cuh's stream of codes
// past groups of up to 16 rows of an expert.
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

// How a kernel for groups of 8 * RT rows works. An item of a block has `kAcross` column tiles of
// each of `kParts` matrices, whose sums meet in shared memory together.
template <typename Weights_, int RT_, int Parts>
struct PackedShape {
  using Weights = Weights_;
  static constexpr int RT = RT_, kParts = Parts, kAcross = Parts == 2 ? 1 : 4;
  static constexpr int kSlots = kParts * kAcross, kRows = 8 * RT, kStage = kSkinnyStage<Weights>;
  static constexpr int kSubs = Weights::kWindow / 32, kChunk = 128 / Weights::kWindow;
  static constexpr int kStages = Weights::kUnits == 1 ? 6 : 4;  // windows of a warp's ring
  static constexpr int kBlocks = RT == 1 ? 3 : 2;               // on a multiprocessor
  static constexpr int kSums = kSkinnyTile * kRows;             // of a warp and tile

  // Bytes of a block's shared memory: rings, rows of x, sums, a zero, the list of groups.
  static __host__ __device__ constexpr int64_t shared(int64_t depth, int each, int room) {
    const int64_t warp = kStages * kStage + skinny_x_units<Weights>(depth, each);
    const int64_t units = kSkinnyWarps * (warp + kSlots * kSums / 4) + 1;
    return units * 16 + room * int64_t{sizeof(RowGroup)};
  }
  // Items of a group whose matrices have `tiles` column tiles.
  static __host__ __device__ constexpr int items(int tiles) {
    return (tiles + kAcross - 1) / kAcross;
  }
};

// Where a warp is in its block's share of (group, item, slot, window): windows are fetched ahead of
// those that are multiplied. Few instructions for a window: they would be half of all.
template <typename Shape, typename T>
struct PackedCursor {
  using Weights = typename Shape::Weights;
  const PackedExperts<Weights, T>& job;
  const RowGroup* groups;
  const WindowRange& range;
  int tiles, group, item, left, slot;
  Weights weights;
  int at, end;   // windows of the expert: the next one and behind the slot's last
  bool present;  // whether there are any

  __device__ __forceinline__ PackedCursor(const PackedExperts<Weights, T>& j, const RowGroup* g,
                                          const WindowRange& r, int begin, int count)
      : job(j),
        groups(g),
        range(r),
        tiles(j.tiles()),
        group(begin / Shape::items(tiles)),
        item(begin % Shape::items(tiles)),
        left(count),
        slot(0),
        weights(j.weights) {
    if (left > 0) weights = own();
    enter();
  }
  __device__ __forceinline__ Weights own() const {
    return job.template of_expert<Shape::kParts>(groups[group].expert);
  }
  // At the first window of `slot`.
  __device__ __forceinline__ void enter() {
    const int column = item * Shape::kAcross + slot % Shape::kAcross;
    present = left > 0 && range.count > 0 && column < tiles;
    at = (slot / Shape::kAcross * tiles + column) * weights.windows + range.first;
    end = at + range.count;
  }
  __device__ __forceinline__ void fetch(uint4* to, int lane) {
    if (present) weights.fetch(to, 0, at, lane);
    copy_async_commit();
    if (++at >= end) next_slot();
  }
  __device__ __forceinline__ void next_slot() {
    if (++slot == Shape::kSlots) {
      slot = 0;
      if (--left > 0 && ++item == Shape::items(tiles)) item = 0, ++group, weights = own();
    }
    enter();
  }
};

// sums += a window's products; `x`: this lane's units, steps of 32 `step` apart, `live` tiles of
// eight rows. In the order of SkinnyWindow. A lane reads the codes that it has copied itself.
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
    if (j > 0 && j >= live) break;
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

// One group after another: its rows of x, then the tiles of W that fall to the block.
template <typename Shape, typename T>
struct PackedBlock {
  using Weights = typename Shape::Weights;
  static constexpr int kStages = Shape::kStages, kStage = Shape::kStage;
  const PackedExperts<Weights, T>& job;
  PackedCursor<Shape, T>& ahead;
  const WindowRange& range;
  uint4 *ring, *xs, *zeros;  // the warp's ring and rows
  float* sums;               // [slot][warp][row of x][row of W]
  int place;                 // in the ring: to be multiplied next
  Weights weights;
  RowGroup group;
  int rows;  // of the group

  // All of the block's `count` items, from number `begin` on.
  __device__ __forceinline__ void run(const RowGroup* groups, int begin, int count) {
    const int items = Shape::items(job.tiles()), lane = threadIdx.x % 32;
    int item = begin % items, at = begin / items, loaded = -1;
    for (; count > 0; --count) {
      if (loaded != at) {
        group = groups[at], rows = min(job.each, group.left), loaded = at;
        weights = job.template of_expert<Shape::kParts>(group.expert);
        load(lane);
      }
      float sum[Shape::kSlots][Shape::RT][4] = {};
#pragma unroll
      for (int p = 0; p < Shape::kSlots; ++p) multiply(sum[p], lane);
      __syncthreads();  // the sums before have been read
      keep(sum, lane);
      __syncthreads();
      put(item);
      if (++item == items) item = 0, ++at;
    }
  }
  // Rows in shared memory: whole tiles of eight, but for a shape of one tile the group's alone.
  __device__ __forceinline__ int stored() const {
    return Shape::RT == 1 ? rows : (rows + 7) / 8 * 8;
  }
  __device__ __forceinline__ void load(int lane) const {
    const T* from = job.x + int64_t{group.first} * job.depth;
    const SkinnyInput<T> input{from, job.depth, job.depth, rows, stored(), 1, true};
    __syncwarp();
    skinny_load_x<Weights>(xs, input, 0, range, lane, [](const uint4&, int, int) {});
  }

  __device__ __forceinline__ uint4* next_place() {
    uint4* const at = ring + place * kStage;
    place = place + 1 == kStages ? 0 : place + 1;
    return at;
  }
  // Sums of a tile over the warp's windows.
  __device__ __forceinline__ void multiply(float (&sum)[Shape::RT][4], int lane) {
    constexpr int kChunk = Shape::kChunk;
    // Lanes without a row read zeros, always the same.
    const bool has_row = Shape::RT > 1 || lane / 4 < rows;
    const int step = has_row ? 4 * stored() : 0, live = (rows + 7) / 8;
    const uint4* x = has_row ? xs + lane : zeros;
    int left = range.count;
    for (; left >= kChunk; left -= kChunk) {
      uint4* slot[kChunk];
      copy_async_wait<kStages - kChunk>();
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        slot[i] = next_place();
        packed_add<Shape, T>(sum, weights, slot[i], x + i * Shape::kSubs * step, step, live, lane);
      }
#pragma unroll
      for (int i = 0; i < kChunk; ++i) ahead.fetch(slot[i], lane);
      x += kChunk * Shape::kSubs * step;
    }
    for (; left > 0; --left, x += Shape::kSubs * step) {
      copy_async_wait<kStages - 1>();
      uint4* const slot = next_place();
      packed_add<Shape, T>(sum, weights, slot, x, step, live, lane);
      ahead.fetch(slot, lane);
    }
  }
  __device__ __forceinline__ void keep(const float (&sum)[Shape::kSlots][Shape::RT][4],
                                       int lane) const {
    const int place = lane % 4 * 2 * kSkinnyTile + lane / 4;
#pragma unroll
    for (int p = 0; p < Shape::kSlots; ++p) {
      float* mine = sums + (p * kSkinnyWarps + threadIdx.x / 32) * Shape::kSums + place;
#pragma unroll
      for (int e = 0; e < Shape::RT * 4; ++e)
        mine[(e / 4 * 8 + e % 2) * kSkinnyTile + e % 4 / 2 * 8] = sum[p][e / 4][e % 4];
    }
  }
  // The warps' sums of slot p and an output, added in their order.
  __device__ __forceinline__ float total(int p, int at, int64_t n) const {
    const float* from = sums + p * kSkinnyWarps * Shape::kSums + at;
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kSkinnyWarps; ++w) sum += from[w * Shape::kSums];
    return weights.finish(sum, n);
  }
  __device__ __forceinline__ void put(int item) const {
    constexpr int kEach = kSkinnyTile * Shape::kAcross;
    for (int e = threadIdx.x; e < rows * kEach; e += 32 * kSkinnyWarps) {
      const int m = e / kEach, p = e % kEach / kSkinnyTile, at = m * kSkinnyTile + e % kSkinnyTile;
      const int64_t n = int64_t{item} * kEach + e % kEach;
      if (n >= weights.columns) continue;
      float y = total(p, at, n);
      if constexpr (Shape::kParts == 2) y = gated<T>(y, total(1, at, weights.columns + n));
      job.out[(group.first + m) * weights.columns + n] = from_float<T>(y);
    }
  }
};

template <typename Shape, typename T>
__global__ void __launch_bounds__(32 * kSkinnyWarps, Shape::kBlocks)
    moe_packed_rows(PackedExperts<typename Shape::Weights, T> job) {
#if FD_SM80
  constexpr int kRing = Shape::kStages * Shape::kStage;
  extern __shared__ uint4 expert_memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t x_units = skinny_x_units<typename Shape::Weights>(job.depth, job.each);
  uint4* const after = expert_memory + kSkinnyWarps * kRing;
  auto* const sums = reinterpret_cast<float*>(after + kSkinnyWarps * x_units);
  auto* const zeros = reinterpret_cast<uint4*>(sums + Shape::kSlots * kSkinnyWarps * Shape::kSums);
  auto* const groups = reinterpret_cast<RowGroup*>(zeros + 1);
  if (!job.at_once) wait_for_inputs();
  if (threadIdx.x == 0) *zeros = uint4{};
  const int listed = list_groups<32 * kSkinnyWarps>(job.rows, job.each, job.room, groups);
  const int items = listed * Shape::items(job.tiles()), blocks = gridDim.x, block = blockIdx.x;
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
  PackedBlock<Shape, T> own{job, ahead,       range, ring, after + warp * x_units, zeros, sums,
                            0,   job.weights, {},    0};
  own.run(groups, begin, count);
#endif
}

}  // namespace fd

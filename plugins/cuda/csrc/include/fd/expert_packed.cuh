// Products of experts' rows with packed weights (sm_80 and newer): a stream of codes for experts of
// few rows as in skinny.cuh, tiles for those of many as in packed_tiles.cuh.
//
// Sums are those of the dense kernels, in their order: eighths of K, added one after the other. A
// row's bits depend neither on the kernel nor on the other rows.
#pragma once
#include "fd/activation.cuh"
#include "fd/expert_tiles.cuh"
#include "fd/packed_tiles.cuh"

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
  int each;      // rows of a group, where codes are streamed
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
  // Rows that belong to no expert are zeros.
  __device__ __forceinline__ void clear_rest() const {
    const int64_t begin = rows.sum(rows.experts - 1) * weights.columns,
                  end = rows.rows * weights.columns;
    const int64_t block = blockIdx.x + int64_t{blockIdx.y} * gridDim.x;
    const int64_t step = int64_t{gridDim.x} * gridDim.y * blockDim.x;
    for (int64_t i = begin + block * blockDim.x + threadIdx.x; i < end; i += step)
      out[i] = from_float<T>(0.f);
  }
};

// silu(g) * u of rounded g and u.
template <typename T>
__device__ __forceinline__ float gated(float gate, float value) {
  return silu_of(to_float(from_float<T>(gate))) * to_float(from_float<T>(value));
}

// --- few rows ---

// Up to `each` rows of one expert.
struct RowGroup {
  int first, expert_rows;
  __device__ __forceinline__ int expert() const { return expert_rows / 16; }
  __device__ __forceinline__ int rows() const { return expert_rows % 16; }
};

// The groups of all experts in order; returns their number. By all of the block's 256 threads.
__device__ __forceinline__ int list_groups(const ExpertRows& rows, int each, int room,
                                           RowGroup* to) {
  __shared__ int sums[kSkinnyWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0;
  for (int base = 0; base < rows.experts; base += 32 * kSkinnyWarps) {
    const int e = base + static_cast<int>(threadIdx.x);
    const int begin = static_cast<int>(rows.sum(min(e, rows.experts) - 1));
    const int count = e < rows.experts ? max(static_cast<int>(rows.sum(e)) - begin, 0) : 0;
    const int own = (count + each - 1) / each;
    int sum = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += below;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    int at = before + sum - own;
#pragma unroll
    for (int w = 0; w < kSkinnyWarps; ++w) at += w < warp ? sums[w] : 0, before += sums[w];
    for (int i = 0; i < own && at + i < room; ++i)
      to[at + i] = {begin + i * each, e * 16 + min(each, count - i * each)};
    __syncthreads();
  }
  return min(before, room);
}

// Shared memory of a block, in bytes: rings, rows of x, the sums of `Parts` tiles, a zero, the
// groups.
template <typename Weights, int Parts>
__host__ __device__ constexpr int64_t expert_shared(int stages, int64_t depth, int each, int room) {
  const int64_t warp = stages * kSkinnyStage<Weights> + skinny_x_units<Weights>(depth, each);
  return (kSkinnyWarps * warp + Parts * kSkinnySums / 4 + 1) * 16 +
         room * int64_t{sizeof(RowGroup)};
}

// Where a block is in its share of (group, column tile, part, window): windows are fetched ahead of
// those that are multiplied.
template <typename Weights, typename T, int Parts>
struct PackedCursor {
  const PackedExperts<Weights, T>& job;
  const RowGroup* groups;
  WindowRange range;
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
    if (left > 0) weights = job.template of_expert<Parts>(groups[group].expert());
  }
  __device__ __forceinline__ void fetch(uint4* slot, int lane) {
    if (left > 0 && range.count > 0)
      weights.fetch(slot, part * tiles + tile, range.first + window, lane);
    copy_async_commit();
    if (++window < range.count) return;
    window = 0;
    if (++part == Parts) part = 0, next_tile();
  }
  __device__ __forceinline__ void next_tile() {
    if (--left <= 0 || ++tile < tiles) return;
    tile = 0, ++group;
    weights = job.template of_expert<Parts>(groups[group].expert());
  }
};

// Adds the warps' sums of a tile in their order; thread 16 * m + n has row m of x, row n of W.
template <typename Weights, typename T, int Parts>
__device__ __forceinline__ void put_group(const PackedExperts<Weights, T>& job,
                                          const Weights& weights, const float* sums,
                                          const RowGroup& group, int tile) {
  const int m = threadIdx.x / kSkinnyTile;
  const int64_t n = int64_t{tile} * kSkinnyTile + threadIdx.x % kSkinnyTile;
  if (m >= group.rows() || n >= weights.columns) return;
  float total[Parts] = {};
#pragma unroll
  for (int p = 0; p < Parts; ++p) {
#pragma unroll
    for (int w = 0; w < kSkinnyWarps; ++w)
      total[p] += sums[p * kSkinnySums + w * kSkinnyTile * kSkinnyRows + threadIdx.x];
    total[p] = weights.finish(total[p], p * weights.columns + n);
  }
  const float y = Parts == 2 ? gated<T>(total[0], total[Parts - 1]) : total[0];
  job.out[(group.first + m) * weights.columns + n] = from_float<T>(y);
}

// Blocks stay and take a share each of all column tiles of all groups.
template <typename Weights, typename T, int S, int Parts>
__global__ void __launch_bounds__(32 * kSkinnyWarps)
    moe_packed_rows(PackedExperts<Weights, T> job) {
#if FD_SM80
  constexpr int kStage = kSkinnyStage<Weights>, kSubs = Weights::kWindow / 32;
  extern __shared__ uint4 expert_memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t x_units = skinny_x_units<Weights>(job.depth, job.each);
  uint4 *const ring = expert_memory + warp * S * kStage, *const end = ring + S * kStage;
  uint4* const after = expert_memory + kSkinnyWarps * S * kStage;
  uint4 *const xs = after + warp * x_units, *const sums_at = after + kSkinnyWarps * x_units;
  uint4* const zeros = sums_at + Parts * kSkinnySums / 4;
  float* const sums = reinterpret_cast<float*>(sums_at);
  auto* const groups = reinterpret_cast<RowGroup*>(zeros + 1);
  if (!job.at_once) wait_for_inputs();
  if (threadIdx.x == 0) *zeros = uint4{};
  const int items = list_groups(job.rows, job.each, job.room, groups) * job.tiles();
  const int blocks = gridDim.x, block = blockIdx.x, more = items % blocks;
  const int begin = block * (items / blocks) + min(block, more);
  const int count = items / blocks + (block < more ? 1 : 0);
  const WindowRange range = skinny_range(job.depth, Weights::kWindow, warp);
  PackedCursor<Weights, T, Parts> ahead(job, groups, range, begin, count);
#pragma unroll
  for (int i = 0; i < S; ++i) ahead.fetch(ring + i * kStage, lane);
  if (job.at_once) wait_for_inputs();
  let_next_start();
  job.clear_rest();

  const int tiles = job.tiles();
  uint4* slot = ring;
  int loaded = -1, tile = begin % tiles, at = begin / tiles;
  Weights weights = job.weights;
  for (int left = count; left > 0; --left) {
    const RowGroup group = groups[at];
    if (loaded != at) {
      const SkinnyInput<T> input{job.x + int64_t{group.first} * job.depth,
                                 job.depth,
                                 job.depth,
                                 group.rows(),
                                 group.rows(),
                                 1,
                                 true};
      __syncwarp();
      skinny_load_x<Weights>(xs, input, 0, range, lane);
      weights = job.template of_expert<Parts>(group.expert());
      loaded = at;
    }
    // Lanes without a row read zeros, always the same.
    const bool has_row = g < group.rows();
    const SkinnyWindow<Weights, T> window{weights, lane, has_row ? 4 * group.rows() : 0};
    const int x_step = has_row ? kSubs * 4 * group.rows() : 0;
    __syncthreads();  // the sums before have been read
#pragma unroll
    for (int p = 0; p < Parts; ++p) {
      float sum[4] = {};
      const uint4* x = has_row ? xs + lane : zeros;
      for (int i = 0; i < range.count; ++i) {
        copy_async_wait<S - 1>();
        __syncwarp();
        window.add(sum, slot, x);
        __syncwarp();
        ahead.fetch(slot, lane);
        x += x_step;
        slot = slot + kStage == end ? ring : slot + kStage;
      }
      float* mine = sums + p * kSkinnySums + warp * kSkinnyTile * kSkinnyRows;
#pragma unroll
      for (int i = 0; i < 4; ++i) mine[(2 * t + i % 2) * kSkinnyTile + g + i / 2 * 8] = sum[i];
    }
    __syncthreads();
    put_group<Weights, T, Parts>(job, weights, sums, group, tile);
    if (++tile == tiles) tile = 0, ++at;
  }
#endif
}

// --- many rows ---

// The tile of W in place `slot` of eight of a block: where there are two parts, they take turns.
template <int Parts>
__device__ __forceinline__ int packed_column_tile(int first, int slot) {
  return Parts == 2 ? first + slot / 2 : first + slot;
}

// Stores a warp's sums; `tile`, `part`: those of its first place, `wm`: its first row. Where a warp
// has one part alone the second parts meet the first ones in shared memory, [sum][thread].
template <typename Weights, typename T, int WM, int Parts>
__device__ __forceinline__ void put_tile(const PackedExperts<Weights, T>& job,
                                         const Weights& weights, const PackedSums<WM>& total,
                                         float* shared, const ExpertTile& rows, int tile, int part,
                                         int wm) {
  constexpr bool kApart = Parts == 2 && WM == 1;
  constexpr int kOut = Parts == 2 ? 1 : WM;
  const int lane = threadIdx.x % 32;
  if constexpr (kApart) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 16; ++e)
      if (part == 1) shared[e * 256 + threadIdx.x - 32] = total[0][e / 4][e % 4];
    __syncthreads();
    if (part == 1) return;
  }
#pragma unroll
  for (int e = 0; e < kOut * 16; ++e) {
    const int64_t n = int64_t{tile + e / 16} * kSkinnyTile + lane / 4 + e % 4 / 2 * 8;
    const int64_t r = rows.first + wm + e / 4 % 4 * 8 + lane % 4 * 2 + e % 2;
    if (n >= weights.columns || r >= rows.used) continue;
    float y = weights.finish(total[e / 16][e / 4 % 4][e % 4], n);
    if constexpr (Parts == 2) {
      const float second = kApart ? shared[e * 256 + threadIdx.x] : total[WM - 1][e / 4][e % 4];
      y = gated<T>(y, weights.finish(second, weights.columns + n));
    }
    job.out[r * weights.columns + n] = from_float<T>(y);
  }
}

// A block has 8 / Parts column tiles, of every part, and 32 * WM rows; its warps stand WM along
// rows.
template <typename Weights, typename T, int WM, int S, int Parts>
__global__ void __launch_bounds__(256, WM == 1 ? 2 : 1)
    moe_packed_tiles(PackedExperts<Weights, T> job) {
#if FD_SM80
  constexpr int kStage = kPackedStage<Weights, WM>, kHeight = kPackedRowsOfWarp * WM;
  extern __shared__ uint4 expert_memory[];
  if (!job.at_once) wait_for_inputs();
  const ExpertTile rows = find_tile(job.rows, blockIdx.y, kHeight);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = static_cast<int>(blockIdx.x) * (kPackedTiles / Parts), tiles = job.tiles();
  const bool there = rows.expert >= 0 && rows.first < rows.used;
  const Weights weights = job.template of_expert<Parts>(there ? rows.expert : 0);
  const SkinnyInput<T> input{job.x, job.depth, job.depth, static_cast<int>(rows.used), 0, 0, true};
  const int windows = there ? weights.windows : 0, m0 = static_cast<int>(rows.first);
  const int own = packed_column_tile<Parts>(first, warp);
  const auto fetch_w = [&](int i, uint4* stage) {
    if (i < windows && own < tiles)
      weights.fetch(stage + warp * kSkinnyStage<Weights>, warp % Parts * tiles + own, i, lane);
  };
  const auto fetch_x = [&](int i, uint4* stage) {
    if (i < windows) packed_fetch_x<Weights, WM>(stage, input, m0, i);
    copy_async_commit();
  };
#pragma unroll
  for (int i = 0; i < S - 1; ++i) fetch_w(i, expert_memory + i * kStage);
  if (job.at_once) wait_for_inputs();
  let_next_start();
  job.clear_rest();
#pragma unroll
  for (int i = 0; i < S - 1; ++i) fetch_x(i, expert_memory + i * kStage);
  const int wn = warp / WM * WM, wm = warp % WM * kPackedRowsOfWarp;  // first place; first row
  const int slice = static_cast<int>(skinny_slice(job.depth, Weights::kWindow) / Weights::kWindow);
  PackedSums<WM> total = {}, sum = {};
  int at = 0, next = S - 1, left = slice;
  for (int i = 0; i < windows; ++i) {
    copy_async_wait<S - 2>();
    __syncthreads();
    fetch_w(i + S - 1, expert_memory + next * kStage);
    fetch_x(i + S - 1, expert_memory + next * kStage);
    const uint4* stage = expert_memory + at * kStage;
    const uint4* x = stage + kPackedTiles * kSkinnyStage<Weights> + wm * 4;
    packed_window<Weights, WM, T>(sum, weights, stage + wn * kSkinnyStage<Weights>, x, lane);
    if (--left == 0 || i + 1 == windows) {
#pragma unroll
      for (int e = 0; e < WM * 16; ++e) {
        float& part = sum[e / 16][e / 4 % 4][e % 4];
        total[e / 16][e / 4 % 4][e % 4] += part, part = 0.f;
      }
      left = slice;
    }
    at = at + 1 == S ? 0 : at + 1, next = next + 1 == S ? 0 : next + 1;
  }
  copy_async_wait<0>();
  put_tile<Weights, T, WM, Parts>(job, weights, total, reinterpret_cast<float*>(expert_memory),
                                  rows, packed_column_tile<Parts>(first, wn), wn % Parts, wm);
#endif
}

}  // namespace fd

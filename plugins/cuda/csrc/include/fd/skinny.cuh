// y = x W^T for few rows of x (sm_80 and newer): a stream of weights through tensor cores.
//
// Blocks stay on their multiprocessors and take tiles of 16 rows of W in turn; each of a block's
// eight warps walks an eighth of K in windows. Its part of x stays in shared memory. A warp copies
// the weights that it will multiply into a ring of its own, several windows ahead and past the end
// of a tile: many bytes are under way at all times, the first of them before the kernel that
// computes x has ended. The eight sums are added in their order, so a result depends neither on how
// many rows of x there are nor on which they are.
//
// `Weights` says how W is stored: kWindow (steps of k, a multiple of 32), kUnits (16-byte units of
// a lane per window), kExtra (more units of a window), kBlocks (on a multiprocessor), kDeep and
// kFlat (windows of a ring: wanted, and where those do not fit), fetch(), operands(), and finish(),
// which a sum passes through. Of a window's steps, those of lane 4 * g + t are 32 * s + 8 * t + (0
// .. 7) for s = 0 .. kWindow / 32 - 1. `Start` brings a block's x, and the sink takes the sums:
// skinny_ends.cuh.
#pragma once
#include "fd/any_float.cuh"
#include "fd/mma.cuh"
#include "fd/overlap.cuh"

namespace fd {

constexpr int kSkinnyWarps = 8, kSkinnyTile = 16, kSkinnyRows = 8;
constexpr int kPlainWindow = 128;  // of 16-bit weights as they are in a checkpoint

// x [rows, depth]; strides in elements. A block has `each` rows (at most 8); `groups` of blocks
// share the tiles of W, neighbours the same one, so that its bytes come from memory once. `fixed`:
// no kernel under way writes W, so that it may be read before they have ended.
template <typename T>
struct SkinnyInput {
  const T* x;
  int64_t step, depth;
  int rows, each, groups;
  bool fixed;
};

// The windows of one warp: [first, first + count).
struct WindowRange {
  int first, count;
};
__host__ __device__ constexpr int64_t skinny_slice(int64_t depth, int window) {
  const int64_t windows = (depth + window - 1) / window;
  return (windows + kSkinnyWarps - 1) / kSkinnyWarps * window;
}
__device__ __forceinline__ WindowRange skinny_range(int64_t depth, int window, int warp) {
  const int windows = static_cast<int>((depth + window - 1) / window);
  const int each = static_cast<int>(skinny_slice(depth, window) / window);
  const int first = min(warp * each, windows);
  return {first, min(each, windows - first)};
}

// W [columns, depth] of 16-bit elements as it is in a checkpoint. A warp copies whole pieces of
// rows of `Window` steps; every other row has its 64-byte halves exchanged, so that the eight lanes
// that read together meet all banks.
template <typename T, int Window>
struct PlainWeights {
  static constexpr int kWindow = Window, kUnits = Window / 16, kExtra = 0;
  static constexpr int kBlocks = 1, kDeep = 512 / Window, kFlat = 256 / Window;
  static constexpr int kPieces = Window / 8;  // 16-byte units of a row
  const T* w;
  int64_t step, depth, columns;

  static __device__ __forceinline__ int place(int row, int piece) {
    return row * kPieces + (kPieces > 4 ? piece ^ (row % 2 * 4) : piece);
  }
  __device__ __forceinline__ void fetch(uint4* slot, int tile, int window, int lane) const {
    const int piece = lane % kPieces, first = lane / kPieces;
    const int k = window * kWindow + piece * 8, n = tile * kSkinnyTile + first;
    const T* from = w + n * step + k;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int row = u * (32 / kPieces);
      const bool inside = n + row < columns && k < depth;
      copy_async16(slot + place(first + row, piece), inside ? from + row * step : w,
                   inside ? 16 : 0);
    }
  }
  // The first operands of both products of sub-window `s`.
  __device__ __forceinline__ void operands(uint32_t (&a)[2][4], const uint4* slot, int s,
                                           int lane) const {
    const int g = lane / 4, piece = 4 * s + lane % 4;
    const uint4 top = slot[place(g, piece)], bottom = slot[place(g + 8, piece)];
    a[0][0] = top.x, a[0][1] = bottom.x, a[0][2] = top.y, a[0][3] = bottom.y;
    a[1][0] = top.z, a[1][1] = bottom.z, a[1][2] = top.w, a[1][3] = bottom.w;
  }
  template <typename Sum>
  __device__ __forceinline__ Sum finish(Sum sum, int64_t) const {
    return sum;
  }
};

// Shared memory of a block, in units of 16 bytes: rings, the rows of x, the sums of two tiles, a
// zero, what Start needs.
template <typename Weights>
constexpr int kSkinnyStage = 32 * Weights::kUnits + Weights::kExtra;
constexpr int kSkinnySums = kSkinnyWarps * kSkinnyTile;  // for each row of x

template <typename Weights>
__host__ __device__ constexpr int64_t skinny_x_units(int64_t depth, int each) {  // of a warp
  return skinny_slice(depth, Weights::kWindow) / 8 * each;
}
template <typename Weights, typename Start>
int64_t skinny_shared(const Start& start, int stages, int64_t depth, int each) {
  const int64_t warp = stages * kSkinnyStage<Weights> + skinny_x_units<Weights>(depth, each);
  const int64_t sums = kSkinnySums / 2 * each + 1,
                more = start.template units<Weights>(depth, each);
  return (kSkinnyWarps * warp + sums + more) * 16;
}

// One warp's part of x, [windows * kWindow / 32, each, 4] units: lane 4 * g + t reads unit t of row
// g. Its lanes copy unit t of every eighth pair of a row and 32 steps. No divisions: they would
// take longer than the copies. taken(unit, m, sub) sees each; the four lanes of a row and 32 steps
// call it together.
template <typename Weights, typename T, typename Taken>
__device__ __forceinline__ void skinny_load_x(uint4* to, const SkinnyInput<T>& input, int m0,
                                              const WindowRange& range, int lane, Taken&& taken) {
  constexpr int kAtOnce = 4;
  const int subs = range.count * (Weights::kWindow / 32), t = lane % 4;
  const int k0 = range.first * Weights::kWindow + t * 8, rows = min(input.each, input.rows - m0);
  const T* from = input.x + m0 * input.step + k0;
  int m = 0, sub = lane / 4;
  while (subs > 0 && m < input.each) {
    uint4 held[kAtOnce];
    int row[kAtOnce], step[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      while (sub >= subs) sub -= subs, ++m;
      const bool inside = m < rows && k0 + sub * 32 < input.depth;
      row[j] = m, step[j] = sub;
      held[j] =
          inside ? *reinterpret_cast<const uint4*>(from + m * input.step + sub * 32) : uint4{};
      sub += 8;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (row[j] >= input.each) break;
      to[(step[j] * input.each + row[j]) * 4 + t] = held[j];
      taken(held[j], row[j], step[j]);
    }
  }
  __syncwarp();
}

// A start (skinny_ends.cuh): x as it is.
template <typename T>
struct PlainStart {
  template <typename Weights>
  __host__ __device__ int64_t units(int64_t, int) const {
    return 0;
  }
  template <typename Weights>
  __device__ __forceinline__ void fetch(uint4*, int64_t, const WindowRange&, int) const {}
  template <typename Weights>
  __device__ __forceinline__ void load(uint4* to, uint4*, const SkinnyInput<T>& input, int m0,
                                       const WindowRange& range, int lane) const {
    skinny_load_x<Weights>(to, input, m0, range, lane, [](const uint4&, int, int) {});
  }
};

// sum += a window's products; `x`: this lane's units, `x_step` apart.
template <typename Weights, typename T>
struct SkinnyWindow {
  using Sum = typename SumOf<T>::type;
  const Weights& weights;
  int lane, x_step;

  // With scales by windows: their products first, in two chains, then scaled onto the sum.
  __device__ __forceinline__ void add(Sum (&sum)[4], const uint4* slot, const uint4* x) const {
    if constexpr (Weights::kExtra == 0) {
      multiply(sum, sum, slot, x);
    } else {
      float even[4] = {}, odd[4] = {};
      multiply(even, odd, slot, x);
      const float2 scale = weights.window_scales(slot, lane);  // of rows g and g + 8
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sum[i] = fmaf(even[i] + odd[i], i < 2 ? scale.x : scale.y, sum[i]);
    }
  }
  __device__ __forceinline__ void multiply(Sum (&even)[4], Sum (&odd)[4], const uint4* slot,
                                           const uint4* x) const {
#pragma unroll
    for (int s = 0; s < Weights::kWindow / 32; ++s) {
      const uint4 own = x[s * x_step];
      uint32_t a[2][4];
      weights.operands(a, slot, s, lane);
      const uint32_t b[2][2] = {{own.x, own.y}, {own.z, own.w}};
      mma_16x8x16<T>(even, a[0], b[0]);
      mma_16x8x16<T>(odd, a[1], b[1]);
    }
  }
};

// The order in which a block takes tiles of W: those of a result `parts` together, `tiles` apart.
template <int Parts>
struct TileWalk {
  int tile, part, tiles, step;

  __device__ __forceinline__ bool there() const { return tile < tiles; }
  __device__ __forceinline__ int index() const { return tile + part * tiles; }
  __device__ __forceinline__ void next() {
    part = part + 1 == Parts ? 0 : part + 1;
    if (part == 0) tile += step;
  }
};

// Adds the warps' sums of a tile in their order and hands them to the sink. `shared` is not written
// again before the barrier of the tile after the next.
template <typename Weights, typename Sum, typename Sink>
__device__ __forceinline__ void skinny_finish(const Sum (&sum)[4], Sum* shared, int64_t n, int m0,
                                              int each, bool puts, const Weights& weights,
                                              const Sink& sink, typename Sink::Column& column) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Sum* mine = shared + warp * kSkinnyTile * each;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (2 * t + i % 2 < each) mine[(2 * t + i % 2) * kSkinnyTile + g + i / 2 * 8] = sum[i];
  __syncthreads();
  if (!puts) return;
  Sum total = 0;
#pragma unroll
  for (int w = 0; w < kSkinnyWarps; ++w) total += shared[w * kSkinnyTile * each + threadIdx.x];
  sink.put(m0 + threadIdx.x / kSkinnyTile, n, weights.finish(total, n), column);
}

template <typename Weights, typename T, int S, typename Start, typename Sink>
__global__ void __launch_bounds__(32 * kSkinnyWarps)
    linear_skinny(Weights weights, SkinnyInput<T> input, int tiles, Start start, Sink sink) {
#if FD_SM80
  using Sum = typename SumOf<T>::type;
  constexpr int kStage = kSkinnyStage<Weights>, kSubs = Weights::kWindow / 32;
  extern __shared__ uint4 skinny_memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int m0 = blockIdx.x % input.groups * input.each, rows = min(input.each, input.rows - m0);
  const WindowRange range = skinny_range(input.depth, Weights::kWindow, warp);
  uint4 *const ring = skinny_memory + warp * S * kStage, *const end = ring + S * kStage;
  const int64_t x_units = skinny_x_units<Weights>(input.depth, input.each);
  uint4* const xs = skinny_memory + kSkinnyWarps * S * kStage + warp * x_units;
  uint4* const sums = skinny_memory + kSkinnyWarps * (S * kStage + x_units);
  uint4* const zeros = sums + kSkinnySums / 2 * input.each;

  TileWalk<Sink::kParts> at{static_cast<int>(blockIdx.x) / input.groups, 0, tiles,
                            static_cast<int>(gridDim.x) / input.groups};
  TileWalk<Sink::kParts> ahead = at;  // to be fetched
  int next_window = 0;
  const auto fetch = [&](uint4* slot) {
    if (ahead.there() && range.count > 0)
      weights.fetch(slot, ahead.index(), range.first + next_window, lane);
    copy_async_commit();
    if (++next_window >= range.count) next_window = 0, ahead.next();
  };
  if (!input.fixed) wait_for_inputs();
  let_next_start();
  start.template fetch<Weights>(zeros + 1, input.depth, range, lane);
  // One window after another: a burst of all would hold up the small kernel that is waited for,
  // whose reads queue behind it (measured: 65.8 -> 62.9 us for a Llama-3-8B block in int4, H100).
#pragma unroll
  for (int i = 0; i < S; ++i) {
    copy_async_wait<0>();
    fetch(ring + i * kStage);
  }
  if (threadIdx.x == 0) *zeros = uint4{};
  __syncthreads();
  copy_async_wait<S - 1>();  // with the first, what `start` fetches
  wait_for_inputs();
  start.template load<Weights>(xs, zeros + 1, input, m0, range, lane);

  // Lanes without a row read zeros, always the same.
  const bool has_row = lane / 4 < rows;
  const SkinnyWindow<Weights, T> window{weights, lane, has_row ? 4 * input.each : 0};
  const int x_step = has_row ? kSubs * 4 * input.each : 0;
  uint4* slot = ring;
  typename Sink::Column column{};
  for (int parity = 0; at.there(); at.next(), parity ^= 1) {
    const int64_t n = int64_t{at.index()} * kSkinnyTile + threadIdx.x % kSkinnyTile;
    const bool puts = threadIdx.x / kSkinnyTile < rows && n < weights.columns;
    if (puts) sink.early(column, m0 + threadIdx.x / kSkinnyTile, n);
    Sum sum[4] = {};
    const uint4* x = has_row ? xs + lane : zeros;
    for (int i = 0; i < range.count; ++i) {
      copy_async_wait<S - 1>();
      __syncwarp();
      window.add(sum, slot, x);
      __syncwarp();
      fetch(slot);
      x += x_step;
      slot = slot + kStage == end ? ring : slot + kStage;
    }
    Sum* shared = reinterpret_cast<Sum*>(sums) + parity * kSkinnySums * input.each;
    skinny_finish(sum, shared, n, m0, input.each, puts, weights, sink, column);
  }
#endif
}

}  // namespace fd

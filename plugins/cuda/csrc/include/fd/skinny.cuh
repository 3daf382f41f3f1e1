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
#include "fd/overlap.cuh"
#include "fd/skinny_rows.cuh"

namespace fd {

constexpr int kPlainWindow = 128;  // of 16-bit weights as they are in a checkpoint

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

// Shared memory of a block, in units of 16 bytes: rings, the rows of x, the sums of two tiles,
// what Start needs.
template <typename Weights>
constexpr int kSkinnyStage = 32 * Weights::kUnits + Weights::kExtra;
constexpr int kSkinnySums = kSkinnyWarps * kSkinnyTile;  // for each row of x

template <typename Weights, int Teams, typename Start>
__host__ __device__ int64_t skinny_shared(const Start& start, int stages, int64_t depth, int each) {
  const int64_t warp =
      Teams * stages * kSkinnyStage<Weights> + skinny_rows_units<Weights>(depth, each);
  const int64_t sums = Teams * kSkinnySums / 2 * each,
                more = start.template units<Weights>(depth, each);
  return (kSkinnyWarps * warp + sums + more) * 16;
}

// sum += a window's products; `x`: this lane's units, where it `has_row`. The others
// read nothing: a read would take as long as theirs.
template <typename Weights, typename T>
struct SkinnyWindow {
  using Sum = typename SumOf<T>::type;
  const Weights& weights;
  int lane;
  bool has_row;
  uint4 own;  // stays zero without a row

  // A tile's windows from `slot` of the ring on, and in their place the next to be copied.
  template <int S, typename Memory, typename Stream>
  __device__ __forceinline__ void add_all(Sum (&sum)[4], int count, const Memory& own,
                                          const uint4* x, uint4** slot, Stream& ahead) {
    for (int i = 0; i < count; ++i) {
      copy_async_wait<S - 1>();
      if (!Stream::kOwn) __syncwarp();
      add(sum, *slot, x);
      if (!Stream::kOwn) __syncwarp();
      ahead.fetch(*slot);
      x += Weights::kWindow / 8;
      *slot = own.after(*slot);
    }
  }
  // With scales by windows: their products first, in two chains, then scaled onto the sum.
  __device__ __forceinline__ void add(Sum (&sum)[4], const uint4* slot, const uint4* x) {
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
                                           const uint4* x) {
#pragma unroll
    for (int s = 0; s < Weights::kWindow / 32; ++s) {
      if (has_row) own = x[s * 4];
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
    if (Parts > 1) part = part + 1 == Parts ? 0 : part + 1;
    if (Parts == 1 || part == 0) tile += step;
  }
};

// The windows that a warp copies, in their order: its `range` of every tile of `walk`.
template <typename Weights, int Parts, typename = void>
struct WindowStream {
  const Weights& weights;
  TileWalk<Parts> walk;
  WindowRange range;
  int lane, window = 0;
  static constexpr bool kOwn = false;  // whether a lane reads what it copied

  __device__ __forceinline__ WindowStream(const Weights& weights, const TileWalk<Parts>& walk,
                                          const WindowRange& range, int lane)
      : weights(weights), walk(walk), range(range), lane(lane) {}
  __device__ __forceinline__ void fetch(uint4* slot) {
    if (walk.there() && range.count > 0)
      weights.fetch(slot, walk.index(), range.first + window, lane);
    copy_async_commit();
    if (++window >= range.count) window = 0, walk.next();
  }
};

template <typename>
struct AnyType {
  using Void = void;
};

// Of weights that say how to find the next window from the last.
template <typename Weights, int Parts>
struct WindowStream<Weights, Parts, typename AnyType<typename Weights::Cursor>::Void> {
  const Weights& weights;
  TileWalk<Parts> walk;
  WindowRange range;
  int lane, left;
  typename Weights::Cursor cursor;
  uint32_t window;
  static constexpr bool kOwn = true;

  __device__ __forceinline__ WindowStream(const Weights& weights, const TileWalk<Parts>& walk,
                                          const WindowRange& range, int lane)
      : weights(weights), walk(walk), range(range), lane(lane), cursor(weights.stream(lane)) {
    enter();
  }
  __device__ __forceinline__ void enter() {
    left = range.count;
    window = static_cast<uint32_t>(walk.index() * weights.windows + range.first);
  }
  __device__ __forceinline__ void fetch(uint4* slot) {
    if (walk.there() && range.count > 0) weights.fetch(cursor, slot, window, lane);
    copy_async_commit();
    ++window;
    if (--left <= 0) walk.next(), enter();
  }
};

// What of a block's shared memory is whose; in the order of skinny_shared.
template <typename Weights, int Teams, int S>
struct SkinnyMemory {
  static constexpr int kStage = kSkinnyStage<Weights>;
  uint4 *ring, *end;  // the warp's
  uint4 *xs, *sums, *room;

  __device__ __forceinline__ SkinnyMemory(uint4* all, int64_t depth, int each, int warp) {
    const int64_t x_units = skinny_rows_units<Weights>(depth, each);
    uint4* const all_x = all + kSkinnyWarps * Teams * S * kStage;
    ring = all + threadIdx.x / 32 * S * kStage, end = ring + S * kStage;
    xs = all_x + warp * x_units, sums = all_x + kSkinnyWarps * x_units;
    room = sums + Teams * kSkinnySums / 2 * each;
  }
  __device__ __forceinline__ uint4* after(uint4* slot) const {
    return slot + kStage == end ? ring : slot + kStage;
  }
};

// The warps' sums of a tile, [kSkinnyWarps, each, kSkinnyTile].
template <typename Sum>
struct TileSums {
  Sum* at;
  int each;

  __device__ __forceinline__ void put(const Sum (&sum)[4], int warp, int lane) const {
    const int g = lane / 4, t = lane % 4;
    Sum* mine = at + warp * kSkinnyTile * each;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (2 * t + i % 2 < each) mine[(2 * t + i % 2) * kSkinnyTile + g + i / 2 * 8] = sum[i];
  }
  // Adds them in the warps' order and hands them to the sink.
  template <typename Weights, typename Sink>
  __device__ __forceinline__ void finish(int index, int64_t m, int64_t n, const Weights& weights,
                                         const Sink& sink, typename Sink::Column& column) const {
    Sum total = 0;
#pragma unroll
    for (int w = 0; w < kSkinnyWarps; ++w) total += at[w * kSkinnyTile * each + index];
    sink.put(m, n, weights.finish(total, n), column);
  }
};

// Registers of a thread. Of two teams, so that beside a block whose start is wide there is room for
// one that is not, but not beside one of its own kind (linear.h).
template <int Teams, typename Start>
constexpr int kSkinnyRegisters = Teams == 1     ? 72
                                 : Start::kWide ? 56
                                                : 72;

template <typename Weights, int Teams, typename T, int S, typename Start, typename Sink>
__global__ void __maxnreg__((kSkinnyRegisters<Teams, Start>))
    linear_skinny(Weights weights, SkinnyInput<T> input, int tiles, Start start, Sink sink) {
#if FD_SM80
  using Sum = typename SumOf<T>::type;
  extern __shared__ uint4 skinny_memory[];
  const auto place = SkinnyPlace<Teams>::here();
  const int lane = place.lane, index = threadIdx.x % (32 * kSkinnyWarps);
  const int m0 = blockIdx.x % input.groups * input.each, rows = min(input.each, input.rows - m0);
  const WindowRange range = skinny_range(input.depth, Weights::kWindow, place.warp);
  const SkinnyMemory<Weights, Teams, S> own(skinny_memory, input.depth, input.each, place.warp);

  // Two teams share the tiles of a result of two; else each has tiles of its own.
  constexpr bool kPaired = Teams == 2 && Sink::kParts == 2;
  const int blocks = static_cast<int>(gridDim.x) / input.groups;
  const int block = static_cast<int>(blockIdx.x) / input.groups;
  using Walk = TileWalk<kPaired ? 1 : Sink::kParts>;
  Walk at = kPaired ? Walk{block, place.team, tiles, blocks}
                    : Walk{block + blocks * place.team, 0, tiles, blocks * Teams};
  WindowStream<Weights, kPaired ? 1 : Sink::kParts> ahead(weights, at, range, lane);
  if (!input.fixed) wait_for_inputs();
  let_next_start();
  const auto early = start.template fetch<Weights>(own.room, input, m0, range, place);
  // One window after another: a burst of all would hold up the small kernel that is waited for,
  // whose reads queue behind it (measured for a Llama-3-8B block in int4: 65.8 -> 62.9 us on an
  // H100, with teams 44.7 -> 42.7 us on an H200).
#pragma unroll
  for (int i = 0; i < S; ++i) {
    copy_async_wait<0>();
    ahead.fetch(own.ring + i * own.kStage);
  }
  copy_async_wait<S - 1>();  // with the first, what `start` fetches
  wait_for_inputs();
  start.template load<Weights>(own.xs, own.room, early, input, m0, range, place);

  SkinnyWindow<Weights, T> window{weights, lane, lane / 4 < rows, {}};
  const uint4* const own_x = own.xs + lane / 4 * skinny_x_row<Weights>(input.depth) + lane % 4;
  uint4* slot = own.ring;
  typename Sink::Column column{};
  for (int parity = 0; at.there(); at.next(), parity ^= 1) {
    const int64_t m = m0 + index / kSkinnyTile;
    const int64_t n = int64_t{at.index()} * kSkinnyTile + index % kSkinnyTile;
    const bool puts = index / kSkinnyTile < rows && n < weights.columns;
    if (puts) sink.early(column, m, n);
    Sum sum[4] = {};
    window.template add_all<S>(sum, range.count, own, own_x, &slot, ahead);
    // Not written again before the barrier of the tile after the next.
    const int size = kSkinnySums * input.each;
    const TileSums<Sum> tile{reinterpret_cast<Sum*>(own.sums) + (2 * place.team + parity) * size,
                             input.each};
    tile.put(sum, place.warp, lane);
    kPaired ? __syncthreads() : place.team_barrier();
    if (!puts || (kPaired && place.team != 0)) continue;
    tile.finish(index, m, n, weights, sink, column);
    if constexpr (kPaired) {
      const TileSums<Sum> second{tile.at + 2 * size, input.each};
      second.finish(index, m, n + int64_t{tiles} * kSkinnyTile, weights, sink, column);
    }
  }
#endif
}

}  // namespace fd

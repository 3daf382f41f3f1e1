// y = x W^T for few rows of x (sm_80 and newer): a stream of weights through tensor cores.
//
// A block owns 16 rows of W; each of its eight warps walks an eighth of K in windows. A warp copies
// what it will multiply into a ring of its own in shared memory, several windows ahead: no
// block-wide barrier in the loop, and many bytes under way, before the kernel that computes x has
// ended as well. The eight sums are added in their order, so a result depends neither on how many
// rows of x there are nor on which they are.
//
// `Weights` says how W is stored: kWindow (steps of k, a multiple of 32), kUnits (16-byte units of
// a lane per window), fetch(), operands(), and finish(), which a
// sum passes through. Of a window's steps, those of lane 4 * g + t
// are 32 * s + 8 * t + (0 .. 7) for s = 0 .. kWindow / 32 - 1.
#pragma once
#include "fd/any_float.cuh"
#include "fd/mma.cuh"
#include "fd/overlap.cuh"

namespace fd {

constexpr int kSkinnyWarps = 8, kSkinnyTile = 16, kSkinnyRows = 8;
constexpr int kPlainWindow = 128;  // of 16-bit weights as they are in a checkpoint

// x [rows, depth]; strides in elements. Blocks take eight rows: `groups` of them share a tile of W,
// one after another, so that its bytes come from memory once.
template <typename T>
struct SkinnyInput {
  const T* x;
  int64_t step, depth;
  int rows, groups;
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
  static constexpr int kDeep = 384 / Window, kFlat = 256 / Window;
  static constexpr int kPieces = Window / 8;  // 16-byte units of a row
  const T* w;
  int64_t step, depth, columns;

  static __device__ __forceinline__ int place(int row, int piece) {
    return row * kPieces + (kPieces > 4 ? piece ^ (row % 2 * 4) : piece);
  }
  __device__ __forceinline__ void fetch(uint4* slot, int64_t tile, int window, int lane) const {
    const int piece = lane % kPieces;
    const int64_t k = int64_t{window} * kWindow + piece * 8;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int row = u * (32 / kPieces) + lane / kPieces;
      const int64_t n = tile * kSkinnyTile + row;
      const bool inside = n < columns && k < depth;
      copy_async16(slot + place(row, piece), inside ? w + n * step + k : w, inside ? 16 : 0);
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

// Units of a window in a warp's ring: weights, what belongs to them, the rows of x.
template <typename Weights>
__host__ __device__ constexpr int skinny_units(int rows) {
  return 32 * Weights::kUnits + Weights::kExtra + Weights::kWindow / 32 * 4 * rows;
}

// Bytes of shared memory of a block.
template <typename Weights>
__host__ __device__ constexpr int skinny_shared(int stages, int rows) {
  const int ring = kSkinnyWarps * stages * skinny_units<Weights>(rows) * 16;
  const int sums = kSkinnyWarps * kSkinnyTile * kSkinnyRows * 4;
  return ring > sums ? ring : sums;
}

template <typename Weights, typename T>
struct SkinnyWarp {
  static constexpr int kSubs = Weights::kWindow / 32;
  using Sum = typename SumOf<T>::type;
  const Weights& weights;
  const SkinnyInput<T>& input;
  WindowRange range;
  uint4* ring;
  int lane, stage;  // units of a window

  __device__ __forceinline__ bool has_row() const { return lane / 4 < input.rows; }
  __device__ __forceinline__ uint4* x_slot(uint4* slot, int s) const {
    return slot + 32 * Weights::kUnits + Weights::kExtra + s * 4 * input.rows + lane;
  }
  __device__ __forceinline__ int64_t depth_at(int i, int s) const {
    return int64_t{range.first + i} * Weights::kWindow + s * 32 + lane % 4 * 8;
  }
  __device__ __forceinline__ const T* x_at(int64_t k) const {
    return input.x + lane / 4 * input.step + k;
  }
  __device__ __forceinline__ void fetch_weights(uint4* slot, int i, int64_t tile) const {
    if (i < range.count) weights.fetch(slot, tile, range.first + i, lane);
  }
  __device__ __forceinline__ void fetch_x(uint4* slot, int i) const {
    if (i >= range.count || !has_row()) return;
#pragma unroll
    for (int s = 0; s < kSubs; ++s) {
      const int64_t k = depth_at(i, s);
      const bool inside = k < input.depth;
      copy_async16(x_slot(slot, s), inside ? x_at(k) : input.x, inside ? 16 : 0);
    }
  }
  // The first windows of x, all at once, through registers: their weights are on the way already.
  template <int S>
  __device__ __forceinline__ void first_x() const {
    uint4 held[S][kSubs];
#pragma unroll
    for (int i = 0; i < S; ++i)
#pragma unroll
      for (int s = 0; s < kSubs; ++s) {
        const bool inside = has_row() && i < range.count && depth_at(i, s) < input.depth;
        held[i][s] = inside ? *reinterpret_cast<const uint4*>(x_at(depth_at(i, s))) : uint4{};
      }
    if (!has_row()) return;
#pragma unroll
    for (int i = 0; i < S; ++i)
#pragma unroll
      for (int s = 0; s < kSubs; ++s) *x_slot(ring + i * stage, s) = held[i][s];
  }
  // With scales by windows: their products first, then scaled onto the sum.
  __device__ __forceinline__ void add_window(Sum (&sum)[4], const uint4* slot) const {
    if constexpr (Weights::kExtra == 0) {
      multiply(sum, slot);
    } else {
      float part[4] = {};
      multiply(part, slot);
      const float2 scale = weights.window_scales(slot, lane);  // of rows g and g + 8
      sum[0] = fmaf(part[0], scale.x, sum[0]), sum[1] = fmaf(part[1], scale.x, sum[1]);
      sum[2] = fmaf(part[2], scale.y, sum[2]), sum[3] = fmaf(part[3], scale.y, sum[3]);
    }
  }
  __device__ __forceinline__ void multiply(Sum (&sum)[4], const uint4* slot) const {
#pragma unroll
    for (int s = 0; s < kSubs; ++s) {
      const uint4 x = has_row() ? *x_slot(const_cast<uint4*>(slot), s) : uint4{};
      uint32_t a[2][4];
      weights.operands(a, slot, s, lane);
      const uint32_t b[2][2] = {{x.x, x.y}, {x.z, x.w}};
      mma_16x8x16<T>(sum, a[0], b[0]);
      mma_16x8x16<T>(sum, a[1], b[1]);
    }
  }
};

// Adds the warps' sums in their order and hands them to the sink.
template <typename Weights, typename Sum, typename Sink>
__device__ __forceinline__ void skinny_finish(const Sum (&sum)[4], Sum* shared, int64_t tile,
                                              int64_t m0, int rows, const Weights& weights,
                                              const Sink& sink) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Sum* mine = shared + warp * kSkinnyTile * kSkinnyRows;
  __syncthreads();  // the ring is no longer read
#pragma unroll
  for (int i = 0; i < 4; ++i) mine[(2 * t + i % 2) * kSkinnyTile + g + i / 2 * 8] = sum[i];
  __syncthreads();
  const int m = threadIdx.x / kSkinnyTile;
  const int64_t n = tile * kSkinnyTile + threadIdx.x % kSkinnyTile;
  if (m >= rows || n >= weights.columns) return;
  Sum total = 0;
#pragma unroll
  for (int w = 0; w < kSkinnyWarps; ++w)
    total += shared[w * kSkinnyTile * kSkinnyRows + threadIdx.x];
  sink.put(m0 + m, n, weights.finish(total, n));
}

template <typename Weights, typename T, int S, typename Sink>
__global__ void __launch_bounds__(32 * kSkinnyWarps)
    linear_skinny(Weights weights, SkinnyInput<T> input, Sink sink) {
#if FD_SM80
  extern __shared__ uint4 skinny_ring[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t tile = blockIdx.x / input.groups;
  const int64_t m0 = int64_t{blockIdx.x % input.groups} * kSkinnyRows;
  const int stage = skinny_units<Weights>(min(input.rows, kSkinnyRows));
  input.x += m0 * input.step, input.rows = min(input.rows - static_cast<int>(m0), kSkinnyRows);
  const SkinnyWarp<Weights, T> self{weights,
                                    input,
                                    skinny_range(input.depth, Weights::kWindow, warp),
                                    skinny_ring + warp * S * stage,
                                    lane,
                                    stage};
#pragma unroll
  for (int i = 0; i < S; ++i) {
    self.fetch_weights(self.ring + i * stage, i, tile);
    copy_async_commit();
  }
  let_next_start();
  wait_for_inputs();
  self.template first_x<S>();
  using Sum = typename SumOf<T>::type;
  Sum sum[4] = {};
  uint4* slot = self.ring;
  for (int i = 0; i < self.range.count; ++i) {
    copy_async_wait<S - 1>();
    __syncwarp();
    self.add_window(sum, slot);
    __syncwarp();
    self.fetch_weights(slot, i + S, tile);
    self.fetch_x(slot, i + S);
    copy_async_commit();
    slot = slot + stage == self.ring + S * stage ? self.ring : slot + stage;
  }
  copy_async_wait<0>();
  skinny_finish(sum, reinterpret_cast<Sum*>(skinny_ring), tile, m0, input.rows, weights, sink);
#endif
}

}  // namespace fd

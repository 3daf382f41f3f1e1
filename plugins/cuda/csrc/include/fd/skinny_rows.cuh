// Rows of x in shared memory, for kernels that stream weights past them: each warp of a block has
// its part of K.
#pragma once
#include "fd/mma.cuh"

namespace fd {

constexpr int kSkinnyWarps = 8, kSkinnyTile = 16, kSkinnyRows = 8;

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

// A part of x as experts read it, rows side by side.
template <typename Weights>
__host__ __device__ constexpr int64_t skinny_x_units(int64_t depth, int each) {  // of a warp
  return skinny_slice(depth, Weights::kWindow) / 8 * each;
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

// A part of x row by row.
template <typename Weights>
__host__ __device__ constexpr int skinny_x_row(int64_t depth) {  // of a warp
  return static_cast<int>(skinny_slice(depth, Weights::kWindow) / 8 + 4);
}
template <typename Weights>
__host__ __device__ constexpr int64_t skinny_rows_units(int64_t depth, int each) {  // of a warp
  return int64_t{skinny_x_row<Weights>(depth)} * each;
}

// Where a thread of `Teams` times eight warps is: warps of equal `warp` have the same part of K.
template <int Teams>
struct SkinnyPlace {
  int warp, lane, team;

  static __device__ __forceinline__ SkinnyPlace here() {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if constexpr (Teams == 1) return {warp, lane, 0};
    return {warp % kSkinnyWarps, lane, warp / kSkinnyWarps};
  }
  // f(sub): steps 32 * sub of a part of `subs` that this lane copies; not all lanes get as many.
  template <typename F>
  __device__ __forceinline__ void each_sub(int subs, F&& f) const {
    for (int sub = 8 * team + lane / 4; sub < subs; sub += 8 * Teams) f(sub);
  }
  // All that a part of x consists of is there.
  __device__ __forceinline__ void part_ready() const {
    if constexpr (Teams == 1)
      __syncwarp();
    else
      __syncthreads();
  }
  __device__ __forceinline__ void team_barrier() const {
    if constexpr (Teams == 1)
      __syncthreads();
    else
      asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(32 * kSkinnyWarps) : "memory");
  }
};

// A part of x, [each, windows * kWindow / 32 + 1, 4] units: lane 4 * g + t reads unit t of row g,
// and eight lanes meet all banks. Its lanes copy unit t of every eighth 32 steps, teams in turn. No
// divisions: they would take longer than the copies. taken(unit, m, sub, there) sees each; warps
// call it as one.
template <typename Weights, int Teams, typename T, typename Taken>
__device__ __forceinline__ void skinny_copy_x(uint4* to, const SkinnyInput<T>& input, int m0,
                                              const WindowRange& range,
                                              const SkinnyPlace<Teams>& place, Taken&& taken) {
  constexpr int kAtOnce = 4;
  const int subs = range.count * (Weights::kWindow / 32), t = place.lane % 4;
  const int own = 8 * place.team + place.lane / 4, rows = min(input.each, input.rows - m0);
  const int x_row = skinny_x_row<Weights>(input.depth);
  const int64_t k0 = int64_t{range.first} * Weights::kWindow + own * 32 + t * 8;
  const T* from = input.x + m0 * input.step + k0;
  int m = 0, base = 0;
  while (subs > 0 && m < input.each) {
    uint4 held[kAtOnce];
    int row[kAtOnce], at[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const bool inside = m < rows && base + own < subs && k0 + base * 32 < input.depth;
      row[j] = m, at[j] = base;
      held[j] =
          inside ? *reinterpret_cast<const uint4*>(from + m * input.step + base * 32) : uint4{};
      base += 8 * Teams;
      if (base >= subs) base = 0, ++m;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (row[j] >= input.each) break;
      const int sub = at[j] + own;
      if (sub < subs) to[row[j] * x_row + sub * 4 + t] = held[j];
      taken(held[j], row[j], sub, sub < subs);
    }
  }
}

// One row of x, of which a lane copies at most H units: what it takes to find them is ready before
// the row is, so that little is left to do then.
template <typename Weights, int Teams, typename T, int H>
struct ShortRow {
  const T* from;
  int unit, sub, inside, there;  // of its units: within the row, within the part

  static __device__ __forceinline__ bool fits(const SkinnyInput<T>& input) {
    return input.each == 1 && skinny_slice(input.depth, Weights::kWindow) <= 32 * 8 * Teams * H;
  }
  ShortRow() = default;
  __device__ __forceinline__ ShortRow(const T* row, int64_t depth, const WindowRange& range,
                                      const SkinnyPlace<Teams>& place) {
    const int own = 8 * place.team + place.lane / 4, t = place.lane % 4;
    const int subs = range.count * (Weights::kWindow / 32);
    const int64_t k = int64_t{range.first} * Weights::kWindow + own * 32 + t * 8;
    from = row + k, unit = own * 4 + t, sub = range.first * (Weights::kWindow / 32) + own;
    inside = there = 0;
#pragma unroll
    for (int j = 0; j < H; ++j) {
      there += own + 8 * Teams * j < subs;
      inside += own + 8 * Teams * j < subs && k + 256 * Teams * j < depth;
    }
    asm volatile("" : "+l"(from), "+r"(unit), "+r"(sub), "+r"(inside), "+r"(there));
  }
  __device__ __forceinline__ void load(uint4 (&held)[H]) const {
#pragma unroll
    for (int j = 0; j < H; ++j)
      held[j] =
          j < inside ? __ldcg(reinterpret_cast<const uint4*>(from + 256 * Teams * j)) : uint4{};
  }
  __device__ __forceinline__ void put(uint4* to, const uint4 (&held)[H]) const {
#pragma unroll
    for (int j = 0; j < H; ++j)
      if (j < there) to[unit + 32 * Teams * j] = held[j];
  }
};

// A start (skinny_ends.cuh): x as it is.
template <typename T>
struct PlainStart {
  static constexpr bool kWide = false;
  template <typename Weights>
  __host__ __device__ int64_t units(int64_t, int) const {
    return 0;
  }
  template <typename Weights, int Teams>
  using Early = ShortRow<Weights, Teams, T, 8 / Teams>;

  template <typename Weights, int Teams>
  __device__ __forceinline__ Early<Weights, Teams> fetch(uint4*, const SkinnyInput<T>& input,
                                                         int m0, const WindowRange& range,
                                                         const SkinnyPlace<Teams>& place) const {
    return {input.x + m0 * input.step, input.depth, range, place};
  }
  template <typename Weights, int Teams>
  __device__ __forceinline__ void load(uint4* to, uint4*, const Early<Weights, Teams>& early,
                                       const SkinnyInput<T>& input, int m0,
                                       const WindowRange& range,
                                       const SkinnyPlace<Teams>& place) const {
    if (early.fits(input)) {
      uint4 held[8 / Teams];
      early.load(held);
      early.put(to, held);
    } else {
      skinny_copy_x<Weights>(to, input, m0, range, place, [](const uint4&, int, int, bool) {});
    }
    place.part_ready();
  }
};

}  // namespace fd

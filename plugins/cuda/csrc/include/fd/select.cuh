// Truncated sampling without a sort, one block a row, behind vocab_parts. Weights are integers,
// round(p * 2^50), so that neither threads nor atomics change a kept set or a draw
// (fd_core/ops/sampling/_truncate.py).
//
// Only groups whose maximum reaches a floor are read again. What they hold above the floor is kept
// in shared memory; where it does not fit, each step reads those groups anew, and the blocks of a
// cluster share the work: each has histograms of its own, and all of them add up the same ones.
#pragma once
#include "fd/cluster.cuh"
#include "fd/philox.cuh"
#include "fd/vocab_parts.cuh"

namespace fd {

constexpr int kSelectThreads = 1024, kCandidates = 2816, kBins = 2048;
constexpr int kLiveGroups = kCandidates;         // each has an entry that is to be held
constexpr double kMassOne = 1125899906842624.0;  // 2^50: the weight of probability 1

__device__ __forceinline__ uint64_t weight(float p) {
  return p > 0.f ? __float2ull_rn(fminf(p, 1.f) * 1125899906842624.f) : 0;
}

// How a stored value becomes a probability.
struct AsProbability {
  __device__ __forceinline__ float operator()(float x) const { return x; }
};
struct AsLogit {
  float max, scale, factor;  // factor: 1 / the sum of exponentials
  __device__ __forceinline__ float operator()(float x) const {
    return exp_below(x, max, scale) * factor;
  }
};

struct alignas(16) SelectShared {
  uint32_t low[kBins], high[kBins], count[kBins];  // 64-bit sums in two halves, and counts
  float value[kCandidates];
  int id[kCandidates];
  uint64_t sums[kWarp];
  int used, live, best_id;
  uint32_t counts[kWarp];
  uint64_t found_mass, bin_mass;  // above the bin that was found; in it
  uint32_t found_count, bin_count;
  int found;

  // Those that hold candidates; their list takes the place of the histogram.
  __device__ __forceinline__ uint32_t* groups() { return low; }
};
static_assert(kLiveGroups <= 2 * kBins, "the list of groups lies in low and high");

// Exact in any order.
__device__ __forceinline__ void add_wide(uint32_t* low, uint32_t* high, uint64_t x) {
  const uint32_t part = static_cast<uint32_t>(x), before = atomicAdd(low, part);
  const uint32_t rest = static_cast<uint32_t>(x >> 32) + (before + part < before);
  if (rest != 0) atomicAdd(high, rest);
}

__device__ __forceinline__ uint64_t wide(uint32_t low, uint32_t high) {
  return static_cast<uint64_t>(high) << 32 | low;
}

template <typename T>
__device__ __forceinline__ T warp_scan(T x) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const T below = __shfl_up_sync(0xffffffffu, x, d);
    if (lane >= d) x += below;
  }
  return x;
}

// Sum over the threads up to this one, and over all. `warps`: shared, free again after a barrier.
template <typename T>
__device__ __forceinline__ T block_scan(T x, T* warps, T* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  x = warp_scan(x);
  if (lane == kWarp - 1) warps[warp] = x;
  __syncthreads();
  const T sums = warp_scan(lane < static_cast<int>(blockDim.x) / kWarp ? warps[lane] : T{0});
  *total = __shfl_sync(0xffffffffu, sums, kWarp - 1);
  const T before = __shfl_sync(0xffffffffu, sums, max(warp - 1, 0));
  return warp == 0 ? x : x + before;
}

// One row of probabilities behind its parts.
template <typename Value>
struct MassRow {
  VocabRows rows;
  int64_t row;
  const float* groups;  // maxima, stored values
  int64_t num_groups;
  Value p;
  float best;  // the largest probability
  Team team;   // who shares what does not fit

  // A group may hold a value >= floor. Exponentials of the hardware are off by a few units in the
  // last place, and so need not grow with their argument: hence the margin.
  __device__ __forceinline__ bool live(int64_t g, float floor) const {
    return g < num_groups && p(groups[g]) * 1.00001f >= floor;
  }

  // f(p of the maximum, g) for the thread's groups, all blocks alike; their loads run together.
  template <typename F>
  __device__ __forceinline__ void each_group(F&& f) const {
    constexpr int kAhead = 8;
    for (int64_t first = threadIdx.x; first < num_groups; first += kAhead * kSelectThreads) {
      float most[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int64_t g = first + j * kSelectThreads;
        most[j] = g < num_groups ? groups[g] : 0.f;
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (first + j * kSelectThreads < num_groups) f(p(most[j]), first + j * kSelectThreads);
    }
  }

  // f(p, id) for the positive entries >= floor of the block's share, in any order.
  template <typename F>
  __device__ __forceinline__ void each(float floor, F&& f) const {
    const int64_t step = int64_t{team.size} * kSelectThreads;
    for (int64_t g = team.rank * kSelectThreads + threadIdx.x; g < num_groups; g += step) {
      if (!live(g, floor)) continue;
      const Group group(rows, row, g);
      group.each([&](float x, int v, int i) {
        const float value = p(x);
        if (value >= floor && value > 0.f) f(value, static_cast<int>(pack_start(g, v)) + i);
      });
    }
  }
};

// The largest probability of each group, to be looked at as entries are.
template <typename Value>
struct Maxima {
  MassRow<Value> row;
  SelectShared& shared;
  static constexpr bool held = true, weighed = false;
  static constexpr float floor = 0.f;
  static constexpr int precision = 9;  // bits of a value that do not matter

  __device__ __forceinline__ Team team() const { return Team::solo(); }

  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
    row.each_group([&](float most, int64_t g) {
      if (most > 0.f) f(most, static_cast<int>(g));
    });
  }
};

// Puts the entries >= floor of one pack of each lane behind those that are held.
template <typename Value>
__device__ __forceinline__ void hold_pack(const Vec<float, 4>& pack, int64_t first, float floor,
                                          const Value& as_p, SelectShared& s) {
  const unsigned below = (1u << threadIdx.x % kWarp) - 1;
  float p[4];
  unsigned kept[4];
  int all = 0, at = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    p[j] = as_p(pack[j]);
    kept[j] = __ballot_sync(0xffffffffu, p[j] >= floor && p[j] > 0.f);
    at += __popc(kept[j] & below), all += __popc(kept[j]);
  }
  if (all == 0) return;
  int start = 0;
  if (threadIdx.x % kWarp == 0) start = atomicAdd(&s.used, all);
  at += __shfl_sync(0xffffffffu, start, 0);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if ((kept[j] >> threadIdx.x % kWarp & 1) == 0) continue;
    if (at < kCandidates) s.value[at] = p[j], s.id[at] = static_cast<int>(first) + j;
    ++at;
  }
}

// Whether the entries >= floor fit into shared memory, where they are then.
template <typename Value>
__device__ __noinline__ bool hold_entries(const MassRow<Value> row, SelectShared& s, float floor) {
  if (threadIdx.x == 0) s.used = s.live = 0;
  __syncthreads();
  row.each_group([&](float most, int64_t g) {
    if (!(most * 1.00001f >= floor && most > 0.f)) return;
    const int at = atomicAdd(&s.live, 1);
    if (at < kLiveGroups) s.groups()[at] = static_cast<uint32_t>(g);
  });
  __syncthreads();
  if (s.live > kLiveGroups) return false;
  const int packs = s.live * kGroupPacks;
  for (int warp = threadIdx.x / kWarp * kWarp; warp < packs; warp += kSelectThreads) {
    const int i = warp + threadIdx.x % kWarp;
    const int64_t first = i < packs ? pack_start(s.groups()[i / kGroupPacks], i % kGroupPacks) : 0;
    const Vec<float, 4> pack = row.rows.load(row.row, first);
    hold_pack(pack, first, i < packs ? floor : __int_as_float(0x7fffffff), row.p, s);
  }
  __syncthreads();
  return s.used <= kCandidates;
}

// The entries that the steps below look at: all in every block's shared memory, or in the row
// itself.
template <typename Value>
struct Entries {
  MassRow<Value> row;
  SelectShared& shared;
  float floor;
  bool held;
  static constexpr bool weighed = true;
  static constexpr int precision = 0;

  // `keep` false: they will not fit.
  __device__ __forceinline__ Entries(const MassRow<Value>& r, SelectShared& s, float least,
                                     bool keep)
      : row(r), shared(s), floor(least), held(keep && hold_entries(r, s, least)) {}

  __device__ __forceinline__ Team team() const { return held ? Team::solo() : row.team; }

  template <typename F>
  __device__ __forceinline__ void each(F&& f) const {
    if (held)
      for (int i = threadIdx.x; i < shared.used; i += kSelectThreads)
        f(shared.value[i], shared.id[i]);
    else
      row.each(floor, f);
  }
};

// What lies at or above a cut.
struct Upper {
  float cut;
  uint32_t count;
  uint64_t mass;
  bool reached;
};

struct Above {
  uint32_t count;
  uint64_t mass;
};

// What the blocks of a team have in bin `b`; with no counts, a bin counts as one entry if it weighs
// anything.
template <bool Counted>
__device__ __forceinline__ Above bin_of(const SelectShared& s, int b, const Team& team) {
  Above sum{0, 0};
  for (int r = 0; r < team.size; ++r) {
    sum.mass += wide(team.read(&s.low[b], r), team.read(&s.high[b], r));
    if (Counted) sum.count += team.read(&s.count[b], r);
  }
  if (!Counted) sum.count = sum.mass != 0;
  return sum;
}

// Of the bins' entries from the highest down, on top of `above`: the first bin at which `reached`
// is true. Thread t owns the bins last - 2t and last - 2t - 1. The result is in `shared`: the bin,
// or -1.
template <bool Counted, typename F>
__device__ void find_bin(SelectShared& s, int bins, Above above, const Team& team, F&& reached) {
  const int top = bins - 1 - 2 * static_cast<int>(threadIdx.x);
  const Above upper = top > 0 ? bin_of<Counted>(s, top, team) : Above{0, 0};
  const Above lower = top > 0 ? bin_of<Counted>(s, top - 1, team) : Above{0, 0};
  if (threadIdx.x == 0) s.found = -1;
  Above all;
  const uint64_t mass = block_scan(upper.mass + lower.mass, s.sums, &all.mass) + above.mass;
  const uint32_t count = block_scan(upper.count + lower.count, s.counts, &all.count) + above.count;
  const Above middle{count - lower.count, mass - lower.mass};
  const Above before{middle.count - upper.count, middle.mass - upper.mass};
  const bool first = upper.count > 0 && reached(middle) && !(before.count > 0 && reached(before));
  const bool second =
      lower.count > 0 && reached(Above{count, mass}) && !(middle.count > 0 && reached(middle));
  __syncthreads();
  if (first || second) {
    s.found = first ? top : top - 1;
    s.found_count = first ? before.count : middle.count;
    s.found_mass = first ? before.mass : middle.mass;
    s.bin_count = first ? upper.count : lower.count;
    s.bin_mass = first ? upper.mass : lower.mass;
  }
  __syncthreads();
}

// Holds those of the block's entries whose bits from `base` on, without the last `shift`, are
// `prefix`; whether they fit.
template <typename Source>
__device__ bool hold_prefix(const Source& entries, uint32_t base, int shift, uint32_t prefix) {
  SelectShared& s = entries.shared;
  if (threadIdx.x == 0) s.used = 0;
  __syncthreads();
  entries.each([&](float p, int) {
    if ((__float_as_uint(p) - base) >> shift != prefix) return;
    const int at = atomicAdd(&s.used, 1);
    if (at < kCandidates) s.value[at] = p;
  });
  __syncthreads();
  return s.used <= kCandidates;
}

// Adds the entries whose leading bits are `prefix` to the bins of the next `width`.
template <bool Counted, typename Source>
__device__ __forceinline__ void fill_bins(const Source& entries, bool narrow, uint32_t base,
                                          int shift, int width, uint32_t prefix) {
  SelectShared& s = entries.shared;
  const uint32_t bins = 1u << width;
  for (uint32_t b = threadIdx.x; b < bins; b += kSelectThreads)
    s.low[b] = s.high[b] = s.count[b] = 0;
  __syncthreads();
  const auto add = [&](float p, int) {
    const uint32_t key = (__float_as_uint(p) - base) >> shift;
    if (key >> width != prefix) return;
    const uint32_t bin = key & (bins - 1);
    if (Counted) atomicAdd(&s.count[bin], 1u);
    if (Source::weighed) add_wide(&s.low[bin], &s.high[bin], weight(p));
  };
  if (narrow)
    for (int i = threadIdx.x; i < s.used; i += kSelectThreads) add(s.value[i], 0);
  else
    entries.each(add);
}

// Walks distinct values downward and stops at the first one at which `reached` of the entries at or
// above it is true: a radix descent over the float's bits, which order positive floats, from the
// floor's to the largest entry's, so that the first digit tells most of them apart. `reached` never
// true: everything. Counted: `reached` asks for the count.
template <bool Counted, typename Source, typename F>
__device__ __noinline__ Upper walk_down(const Source entries, F reached) {
  constexpr uint32_t kAbove = 16;  // the hardware's exponentials are off by a few units
  SelectShared& s = entries.shared;
  const Team team = entries.team();
  const uint32_t base = __float_as_uint(entries.floor);
  const uint32_t span = max(__float_as_uint(entries.row.best) + kAbove, base) - base;
  int width = 11, shift = max(32 - __clz(static_cast<int>(span)) - width, 0);
  Above above{0, 0};
  uint32_t prefix = 0;
  for (bool narrow = false, first = true;; first = false) {
    fill_bins<Counted>(entries, narrow, base, shift, width, prefix);
    team.barrier();
    find_bin<Counted>(s, 1 << width, above, team, reached);
    team.barrier();
    if (s.found < 0) return {0.f, 0, 0, false};
    above = {s.found_count, s.found_mass};
    prefix = prefix << width | static_cast<uint32_t>(s.found);
    if (shift <= Source::precision) break;
    if (first && !entries.held) narrow = hold_prefix(entries, base, shift, prefix);
    width = min(shift, 10), shift -= width;
  }
  const Upper found{__uint_as_float(base + (prefix << shift)), above.count + s.bin_count,
                    above.mass + s.bin_mass, true};
  __syncthreads();
  return found;
}

// The k-th largest of the threads' maxima, or somewhat less.
template <typename Value>
__device__ __forceinline__ float reached_by_few(const MassRow<Value>& row, int wanted) {
  float own = 0.f;
  row.each_group([&](float most, int64_t) { own = fmaxf(own, most); });
  const int key = __float_as_int(own);
  int low = 0, high = __float_as_int(row.best) + 1;  // `wanted` reach low, fewer reach high
  while (high - low > 1) {
    const int middle = low + (high - low) / 2, reach = __syncthreads_count(key >= middle);
    (reach >= wanted ? low : high) = middle;
    if (reach >= wanted && reach <= wanted + wanted / 4 + 8) break;
  }
  return __int_as_float(low);
}

// A value that at least k entries reach, and not many more where they are spread over the groups.
template <typename Value>
__device__ __forceinline__ float reached_by(const MassRow<Value>& row, int64_t k, SelectShared& s) {
  if (k <= kSelectThreads / 4) return reached_by_few(row, static_cast<int>(k));
  if (k > row.num_groups) return 0.f;
  return walk_down<true>(Maxima<Value>{row, s}, [=](Above a) { return a.count >= k; }).cut;
}

// Lowest id of the row's largest value; 0 if there is no number.
template <typename Value>
__device__ __noinline__ int64_t best_id(const MassRow<Value> row, SelectShared& s) {
  if (threadIdx.x == 0) s.best_id = 0x7fffffff;
  __syncthreads();
  for (int64_t g = threadIdx.x; g < row.num_groups; g += kSelectThreads) {
    const float most = row.p(row.groups[g]);
    if (!(row.best > 0.f ? most * 1.00001f >= row.best : most == row.best)) continue;
    const Group group(row.rows, row.row, g);
    group.each([&](float x, int v, int i) {
      if (row.p(x) == row.best) atomicMin(&s.best_id, static_cast<int>(pack_start(g, v)) + i);
    });
  }
  __syncthreads();
  return s.best_id == 0x7fffffff ? 0 : s.best_id;
}

}  // namespace fd

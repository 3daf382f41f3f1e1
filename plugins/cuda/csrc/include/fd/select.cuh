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

constexpr int kSelectThreads = 1024, kCandidates = 2048, kBins = 2048;
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
};

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

// The entries that the steps below look at: all in every block's shared memory, or in the row
// itself.
template <typename Value>
struct Entries {
  MassRow<Value> row;
  SelectShared& shared;
  float floor;
  bool held;

  // `keep` false: they will not fit.
  __device__ __forceinline__ Entries(const MassRow<Value>& r, SelectShared& s, float least,
                                     bool keep)
      : row(r), shared(s), floor(least), held(keep) {
    if (!keep) return;
    if (threadIdx.x == 0) s.used = s.live = 0;
    __syncthreads();
    row.each_group([&](float most, int64_t g) {
      if (!(most * 1.00001f >= floor && most > 0.f)) return;
      const int at = atomicAdd(&s.live, 1);
      if (at < kBins) s.count[at] = static_cast<uint32_t>(g);
    });
    __syncthreads();
    held = s.live <= kBins;
    for (int i = threadIdx.x; held && i < s.live * kGroupPacks; i += kSelectThreads)
      hold(s.count[i / kGroupPacks], i % kGroupPacks);
    __syncthreads();
    held = held && s.used <= kCandidates;
  }

  __device__ __forceinline__ void hold(int64_t g, int v) const {
    const int64_t first = pack_start(g, v);
    const Vec<float, 4> pack = row.rows.load(row.row, first);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float p = row.p(pack[i]);
      if (!(p >= floor && p > 0.f)) continue;
      const int at = atomicAdd(&shared.used, 1);
      if (at < kCandidates) shared.value[at] = p, shared.id[at] = static_cast<int>(first) + i;
    }
  }

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

// A value that at least k entries reach: the k-th largest of the threads' maxima, or somewhat less.
template <typename Value>
__device__ __forceinline__ float reached_by(const MassRow<Value>& row, int64_t k) {
  if (k > kSelectThreads) return 0.f;
  float own = 0.f;
  row.each_group([&](float most, int64_t) { own = fmaxf(own, most); });
  const int key = __float_as_int(own), wanted = static_cast<int>(k);
  int low = 0, high = __float_as_int(row.best) + 1;  // `wanted` reach low, fewer reach high
  while (high - low > 1) {
    const int middle = low + (high - low) / 2, reach = __syncthreads_count(key >= middle);
    (reach >= wanted ? low : high) = middle;
    if (reach >= wanted && reach <= wanted + wanted / 4 + 8) break;
  }
  return __int_as_float(low);
}

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

// Holds those of the block's entries whose leading bits are `prefix`; whether they fit.
template <typename Value>
__device__ bool hold_prefix(const Entries<Value>& entries, uint32_t mask, uint32_t prefix) {
  SelectShared& s = entries.shared;
  if (threadIdx.x == 0) s.used = 0;
  __syncthreads();
  entries.each([&](float p, int) {
    if ((__float_as_uint(p) & mask) != prefix) return;
    const int at = atomicAdd(&s.used, 1);
    if (at < kCandidates) s.value[at] = p;
  });
  __syncthreads();
  return s.used <= kCandidates;
}

// Walks distinct values downward and stops at the first one at which `reached` of the entries at or
// above it is true: a radix descent over the float's bits (11, 10, 10 below the sign), which order
// positive floats. `reached` never true: everything. Counted: `reached` asks for the count.
template <bool Counted, typename Value, typename F>
__device__ __noinline__ Upper walk_down(const Entries<Value> entries, F reached) {
  SelectShared& s = entries.shared;
  const Team team = entries.team();
  Above above{0, 0};
  uint32_t prefix = 0, mask = 0;
  bool narrow = false;
  for (int shift = 20; shift >= 0; shift -= 10) {
    const int bins = shift == 20 ? kBins : kBins / 2;
    for (int b = threadIdx.x; b < bins; b += kSelectThreads) s.low[b] = s.high[b] = s.count[b] = 0;
    __syncthreads();
    const auto add = [&](float p, int) {
      const uint32_t bits = __float_as_uint(p);
      if ((bits & mask) != prefix) return;
      const uint32_t bin = bits >> shift & (bins - 1);
      if (Counted) atomicAdd(&s.count[bin], 1u);
      add_wide(&s.low[bin], &s.high[bin], weight(p));
    };
    if (narrow)
      for (int i = threadIdx.x; i < s.used; i += kSelectThreads) add(s.value[i], 0);
    else
      entries.each(add);
    team.barrier();
    find_bin<Counted>(s, bins, above, team, reached);
    team.barrier();
    if (s.found < 0) return {0.f, 0, 0, false};
    above = {s.found_count, s.found_mass};
    prefix |= static_cast<uint32_t>(s.found) << shift;
    mask |= static_cast<uint32_t>(bins - 1) << shift;
    if (shift == 20 && !entries.held) narrow = hold_prefix(entries, mask, prefix);
  }
  const Upper found{__uint_as_float(prefix), above.count + s.bin_count, above.mass + s.bin_mass,
                    true};
  __syncthreads();
  return found;
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

// Adds the kept weights of the block's share to buckets of 2^shift adjacent ids: one atomic for the
// 128 entries that a warp reads together.
template <typename Value>
__device__ void bucket_row(const MassRow<Value>& row, float cut, int shift, SelectShared& s) {
  const int64_t step = int64_t{row.team.size} * kSelectThreads;
  const float least = fmaxf(cut, 4.4e-16f);  // below, weights are 0
  for (int64_t first = row.team.rank * kSelectThreads + threadIdx.x / kWarp * kWarp;
       first < row.num_groups; first += step) {
    const int64_t g = first + threadIdx.x % kWarp;
    const bool live = row.live(g, least);
    if (!__any_sync(0xffffffffu, live)) continue;
    for (int v = 0; v < kGroupPacks; ++v) {
      uint64_t mass = 0;
      if (live) {
        const Vec<float, 4> pack = row.rows.load(row.row, pack_start(g, v));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float p = row.p(pack[i]);
          if (p >= least) mass += weight(p);
        }
      }
#pragma unroll
      for (int d = kWarp / 2; d > 0; d /= 2) mass += __shfl_xor_sync(0xffffffffu, mass, d);
      const int64_t bucket = pack_start(first, v) >> shift;
      if (mass != 0 && threadIdx.x % kWarp == 0) add_wide(&s.low[bucket], &s.high[bucket], mass);
    }
  }
}

// The first id, in id order, at which the running weight of the entries >= cut passes
// floor(bits / 2^64 * their total); the argmax if they weigh nothing.
template <typename Value>
__device__ __noinline__ int64_t draw(const Entries<Value> entries, float cut, uint64_t bits) {
  SelectShared& s = entries.shared;
  const MassRow<Value>& row = entries.row;
  int shift = 7;
  while ((row.rows.width - 1) >> shift >= kSelectThreads) ++shift;
  s.low[threadIdx.x] = s.high[threadIdx.x] = 0;
  __syncthreads();
  if (entries.held)
    entries.each([&](float p, int id) {
      if (p >= cut) add_wide(&s.low[id >> shift], &s.high[id >> shift], weight(p));
    });
  else
    bucket_row(row, cut, shift, s);
  entries.team().barrier();
  const uint64_t own = bin_of<false>(s, threadIdx.x, entries.team()).mass;
  entries.team().barrier();
  uint64_t total;
  uint64_t running = block_scan(own, s.sums, &total);
  if (total == 0) return best_id(row, s);
  const uint64_t target = scale_bits(bits, total);
  if (running > target && running - own <= target)
    s.found = threadIdx.x, s.found_mass = running - own;
  __syncthreads();
  uint64_t before = s.found_mass;
  for (int64_t at = static_cast<int64_t>(s.found) << shift; at < row.rows.width;
       at += kSelectThreads) {
    const int64_t id = at + threadIdx.x;
    const bool inside = threadIdx.x >> shift == 0 && id < row.rows.width;
    const float p = inside ? row.p(row.rows.data[row.row * row.rows.step + id]) : 0.f;
    const uint64_t w = p >= cut ? weight(p) : 0;
    __syncthreads();
    running = block_scan(w, s.sums, &total) + before;
    if (w != 0 && running > target && running - w <= target) s.best_id = static_cast<int>(id);
    before += total;
    __syncthreads();
    if (before > target) return s.best_id;
  }
  return best_id(row, s);  // never: the buckets' sums are those of their entries
}

}  // namespace fd

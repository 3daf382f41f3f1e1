// One draw per row from the truncated distribution, behind vocab_parts.
#pragma once
#include "fd/select.cuh"

namespace fd {

struct Truncation {
  int64_t top_k;     // <= 0 or >= the row's width: off
  float top_p;       // >= 1: off; <= 0: the most probable entry
  float min_p;       // <= 0: off
  bool renormalise;  // top_p counts after top-k's renormalisation (else on the values as they are)
};

// A value that every entry kept by top_p reaches: what lies below it cannot weigh as much as the
// tail. `mass`: the entries' sum in float, whose error the margins cover, as they do the weights'
// rounding.
__device__ __forceinline__ float tail_floor(float mass, float top_p, int64_t width) {
  const double count = static_cast<double>(width);
  const double tail = 0.9999 * mass - 4.5e-16 * count - top_p;
  const double value = 0.999 * tail / count - 1e-14;
  return value > 0 ? static_cast<float>(value) : 0.f;
}

// Holds as many of the largest entries as are likely to fit, if they do and weigh `bound` or more.
// Evenly spread, n entries lie in G (1 - exp(-n / G)) of G groups.
template <typename Value>
__device__ __forceinline__ void hold_heaviest(Entries<Value>& entries, double bound) {
  constexpr float kLikely = 0.9f * kCandidates;
  SelectShared& s = entries.shared;
  const float least = entries.floor, groups = static_cast<float>(entries.row.num_groups);
  const int64_t spread = static_cast<int64_t>(groups * (1.f - expf(-kLikely / groups)));
  entries.floor = reached_by(entries.row, spread, s);
  entries.held = hold_entries(entries.row, s, entries.floor);
  uint64_t own = 0, total;
  for (int i = threadIdx.x; entries.held && i < s.used; i += kSelectThreads)
    own += weight(s.value[i]);
  block_scan(own, s.sums, &total);
  entries.held = entries.held && static_cast<double>(total) >= bound;
  if (!entries.held) entries.floor = least;
  __syncthreads();
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

// Sums over groups of `lanes` adjacent lanes.
template <typename T>
__device__ __forceinline__ T lanes_sum(T x, int lanes) {
  for (int d = lanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

constexpr int kFewCandidates = 128;

// The draw among few entries: each is compared with all others by lanes of its own.
template <typename Value>
__device__ __forceinline__ int64_t sample_few(const Entries<Value>& entries, const Truncation& t,
                                              bool top_k, uint64_t bits, SelectShared& s) {
  // Space of the histogram, which nothing else uses here.
  uint64_t *first = reinterpret_cast<uint64_t*>(s.low), *second = first + kFewCandidates;
  const int n = s.used;
  int lanes = kSelectThreads / kFewCandidates;
  while (lanes < kWarp && n * lanes * 2 <= kSelectThreads) lanes *= 2;
  const int i = static_cast<int>(threadIdx.x) / lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const float p = i < n ? s.value[i] : 0.f;
  const int id = i < n ? s.id[i] : 0x7fffffff;
  int count = 0;
  uint64_t mass = 0;
  for (int j = lane; j < n; j += lanes)
    if (s.value[j] > p) ++count, mass += weight(s.value[j]);
  count = lanes_sum(count, lanes), mass = lanes_sum(mass, lanes);
  uint64_t own = !top_k || count < t.top_k ? weight(p) : 0;
  if (lane == 0 && i < n) first[i] = own;
  __syncthreads();
  if (t.top_p < 1.f) {
    uint64_t base = 0;
    for (int j = lane; j < n; j += lanes) base += first[j];
    base = lanes_sum(base, lanes);
    const bool renormalised = t.renormalise && top_k && n >= t.top_k;
    const double bound =
        static_cast<double>(t.top_p) * (renormalised ? static_cast<double>(base) : kMassOne);
    if (!(static_cast<double>(mass) < bound)) own = 0;
  }
  if (lane == 0 && i < n) second[i] = own;
  if (threadIdx.x == 0) s.best_id = -1;
  __syncthreads();
  uint64_t before = 0, total = 0;
  for (int j = lane; j < n; j += lanes) {
    total += second[j];
    if (s.id[j] < id) before += second[j];
  }
  before = lanes_sum(before, lanes), total = lanes_sum(total, lanes);
  const uint64_t target = scale_bits(bits, total);
  if (lane == 0 && own != 0 && before <= target && target < before + own) s.best_id = id;
  __syncthreads();
  return s.best_id >= 0 ? s.best_id : best_id(entries.row, s);
}

// The draw among more entries, or among those that do not fit. Out of line, so that the usual draws
// keep their values in registers.
template <typename Value>
__device__ __noinline__ int64_t sample_many(Entries<Value> entries, const Truncation t, bool top_k,
                                            float cut, uint64_t bits) {
  if (!entries.held && !top_k && t.top_p < 1.f)
    hold_heaviest(entries, static_cast<double>(t.top_p) * kMassOne);
  if (entries.held && entries.row.team.rank != 0) return 0;
  double base = kMassOne;
  if (top_k) {
    const uint32_t wanted = static_cast<uint32_t>(t.top_k);
    const Upper top = walk_down<true>(entries, [=](Above a) { return a.count >= wanted; });
    cut = fmaxf(cut, top.cut);
    if (t.renormalise && top.reached) base = static_cast<double>(top.mass);
  }
  if (t.top_p < 1.f) {
    const double bound = static_cast<double>(t.top_p) * base;
    const Upper top =
        walk_down<false>(entries, [=](Above a) { return static_cast<double>(a.mass) >= bound; });
    cut = fmaxf(cut, top.cut);
  }
  return draw(entries, cut, bits);
}

template <typename Value>
__device__ int64_t sample_row(const MassRow<Value>& row, const Truncation& t, float mass,
                              uint64_t bits, SelectShared& s) {
  if (!(row.best > 0.f) || t.top_p <= 0.f) return best_id(row, s);
  const float cut = t.min_p > 0.f ? row.best * fminf(t.min_p, 1.f) : 0.f;
  const bool top_k = t.top_k > 0 && t.top_k < row.rows.width;
  float floor = cut;
  if (top_k)
    floor = fmaxf(cut, reached_by(row, t.top_k, s));
  else if (t.top_p < 1.f && cut == 0.f)
    floor = tail_floor(mass, t.top_p, row.rows.width);
  const Entries<Value> entries(row, s, floor, floor > 0.f || row.rows.width <= kCandidates);
  if (entries.held && row.team.rank != 0) return 0;  // the first block does it alone
  if (entries.held && s.used <= kFewCandidates) return sample_few(entries, t, top_k, bits, s);
  return sample_many(entries, t, top_k, cut, bits);
}

// What rows draw with; a null pointer: the filter is off, or the row's number is its stream of
// `seed`.
struct Draws {
  const int64_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seeds;
  const int64_t* positions;
  int64_t seed;
  bool renormalise;
  int64_t* out;

  __device__ __forceinline__ uint64_t bits(int64_t row) const {
    if (seeds == nullptr) return philox_bits(seed, 0, row);
    return philox_bits(seeds[row], positions[row], 0);
  }
  __device__ __forceinline__ Truncation truncation(int64_t row) const {
    return {top_k != nullptr ? top_k[row] : 0, top_p[row], min_p != nullptr ? min_p[row] : 0.f,
            renormalise};
  }
};

// A team of blocks a row. Softmax: the rows are logits, and each draw is the one from
// temperature_softmax's probabilities.
template <bool Softmax>
__global__ void __launch_bounds__(kSelectThreads) sample_rows(PartsJob job, Draws draws) {
  __shared__ SelectShared shared;
  wait_for_inputs();
  const Team team = Team::here();
  const int64_t row = blockIdx.x / team.size, width = job.rows.width;
  const int64_t segments = segments_of(width);
  const int64_t groups = segments * kSegmentThreads;
  const float temperature = Softmax && job.temperature != nullptr ? job.temperature[row] : 1.f;
  const Truncation cut = draws.truncation(row);
  const uint64_t bits = draws.bits(row);
  const float scale = Softmax ? exp_scale(temperature) : 0.f;
  const RowTotal total = row_total(job.parts + row * segments, static_cast<int>(segments), scale);
  const float* maxima = job.groups + row * groups;
  int64_t id;
  if constexpr (Softmax) {
    const float factor = 1.f / total.sum;
    const MassRow<AsLogit> masses{job.rows, row, maxima, groups, {total.max, scale, factor},
                                  factor,   team};
    if (one_hot(temperature) || fabsf(total.max) == INFINITY)
      id = total.hot == 0x7fffffff ? 0 : total.hot;
    else
      id = sample_row(masses, cut, 1.f, bits, shared);
  } else {
    const MassRow<AsProbability> masses{job.rows, row, maxima, groups, {}, total.max, team};
    id = sample_row(masses, cut, total.sum, bits, shared);
  }
  if (threadIdx.x == 0 && team.rank == 0) draws.out[row] = id;
}

}  // namespace fd

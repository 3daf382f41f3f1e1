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

template <typename Value>
__device__ int64_t sample_row(const MassRow<Value>& row, const Truncation& t, float mass,
                              uint64_t bits, SelectShared& s) {
  if (!(row.best > 0.f) || t.top_p <= 0.f) return best_id(row, s);
  float cut = t.min_p > 0.f ? row.best * fminf(t.min_p, 1.f) : 0.f, floor = cut;
  const bool top_k = t.top_k > 0 && t.top_k < row.rows.width;
  if (top_k)
    floor = fmaxf(cut, reached_by(row, t.top_k));
  else if (t.top_p < 1.f && cut == 0.f)
    floor = tail_floor(mass, t.top_p, row.rows.width);
  const Entries<Value> entries(row, s, floor, floor > 0.f || row.rows.width <= kCandidates);
  double base = kMassOne;
  if (top_k) {
    const uint32_t wanted = static_cast<uint32_t>(t.top_k);
    const Upper top = walk_down(entries, [=](Above a) { return a.count >= wanted; });
    cut = fmaxf(cut, top.cut);
    if (t.renormalise && top.reached) base = static_cast<double>(top.mass);
  }
  if (t.top_p < 1.f) {
    const double bound = static_cast<double>(t.top_p) * base;
    const Upper top =
        walk_down(entries, [=](Above a) { return static_cast<double>(a.mass) >= bound; });
    cut = fmaxf(cut, top.cut);
  }
  return draw(entries, cut, bits);
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

// Softmax: the rows are logits, and each draw is the one from temperature_softmax's probabilities.
template <bool Softmax>
__global__ void __launch_bounds__(kSelectThreads) sample_rows(PartsJob job, Draws draws) {
  __shared__ SelectShared shared;
  wait_for_inputs();
  const int64_t row = blockIdx.x, width = job.rows.width, segments = segments_of(width);
  const int64_t groups = segments * kSegmentThreads;
  const float temperature = Softmax && job.temperature != nullptr ? job.temperature[row] : 1.f;
  const float scale = Softmax ? exp_scale(temperature) : 0.f;
  const RowTotal total = row_total(job.parts + row * segments, static_cast<int>(segments), scale);
  const float* maxima = job.groups + row * groups;
  int64_t id;
  if constexpr (Softmax) {
    const float factor = 1.f / total.sum;
    const MassRow<AsLogit> masses{job.rows, row, maxima, groups, {total.max, scale, factor},
                                  factor};
    if (one_hot(temperature) || fabsf(total.max) == INFINITY)
      id = total.hot == 0x7fffffff ? 0 : total.hot;
    else
      id = sample_row(masses, draws.truncation(row), 1.f, draws.bits(row), shared);
  } else {
    const MassRow<AsProbability> masses{job.rows, row, maxima, groups, {}, total.max};
    id = sample_row(masses, draws.truncation(row), total.sum, draws.bits(row), shared);
  }
  if (threadIdx.x == 0) draws.out[row] = id;
}

}  // namespace fd

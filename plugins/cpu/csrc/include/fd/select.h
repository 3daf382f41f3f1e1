// Truncated sampling without a sort, on weights that are integers: round(p * 2^50). Sums of
// integers do not depend on their order, so neither vectors, nor threads, nor devices change a kept
// set or a draw.
#pragma once
#include <algorithm>
#include <vector>

#include "fd/philox.h"
#include "fd/vocab_row.h"

namespace fd {

constexpr double kMassOne = 1125899906842624.0;  // 2^50: the weight of probability 1

typedef double vd8 __attribute__((vector_size(64)));
typedef float vf8 __attribute__((vector_size(32)));
typedef uint64_t vu8 __attribute__((vector_size(64)));

// In [4, 5] one unit in the last place is 2^-50: the addition rounds to it.
inline uint64_t weight(float p) {
  if (!(p > 0)) return 0;
  const double shifted = static_cast<double>(p < 1 ? p : 1.0f) + 4.0;
  uint64_t u;
  std::memcpy(&u, &shifted, 8);
  return u - 0x4010000000000000ull;
}

inline vu8 weight8(vf8 p) {
  return reinterpret_cast<vu8>(__builtin_convertvector(p, vd8) + 4.0) - 0x4010000000000000ull;
}

// Sum of the weights of the entries >= cut (cut > 0 or 0 for all) of [begin, end).
inline uint64_t mass_of(const float* p, int64_t begin, int64_t end, float cut) {
  vu8 sum{};
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    float kept[kLanes];
    for (int k = 0; k < kLanes; ++k) {
      const float v = p[i + k] < 1 ? p[i + k] : 1.0f;  // NaN becomes 1 here and 0 below
      kept[k] = p[i + k] >= cut && p[i + k] > 0 ? v : 0.0f;
    }
    vf8 half[2];
    std::memcpy(half, kept, sizeof half);
    sum += weight8(half[0]) + weight8(half[1]);
  }
  uint64_t total = 0;
  for (int k = 0; k < 8; ++k) total += sum[k];
  for (; i < end; ++i) total += p[i] >= cut ? weight(p[i]) : 0;
  return total;
}

// One row of probabilities with the maxima and weights of its blocks.
class MassRow {
 public:
  static constexpr int64_t kBlock = 256;

  void load(const float* p, int64_t width) {
    p_ = p, width_ = width;
    const size_t blocks = static_cast<size_t>((width + kBlock - 1) / kBlock);
    max_.resize(blocks), mass_.resize(blocks);
    for (size_t b = 0; b < blocks; ++b) max_[b] = max_of(p, begin(b), end(b));
    best_ = *std::max_element(max_.begin(), max_.end());
  }

  float best() const { return best_; }
  int64_t width() const { return width_; }

  // A value that at least `count` entries reach; 0 if the blocks' maxima do not tell.
  float reached_by(int64_t count) {
    if (count > static_cast<int64_t>(max_.size())) return 0;
    scratch_ = max_;
    auto nth = scratch_.begin() + (count - 1);
    std::nth_element(scratch_.begin(), nth, scratch_.end(), [](float a, float b) { return a > b; });
    return *nth > 0 ? *nth : 0;
  }

  // Total weight of the entries >= cut.
  uint64_t mass(float cut) {
    uint64_t total = 0;
    for (size_t b = 0; b < max_.size(); ++b)
      total += mass_[b] = max_[b] > 0 && max_[b] >= cut ? mass_of(p_, begin(b), end(b), cut) : 0;
    return total;
  }

  // The positive entries >= floor, in id order.
  const std::vector<float>& candidates(float floor) {
    scratch_.resize(static_cast<size_t>(width_));
    size_t n = 0;
    for (size_t b = 0; b < max_.size(); ++b) {
      if (!(max_[b] > 0 && max_[b] >= floor)) continue;
      for (int64_t i = begin(b); i < end(b); ++i) {
        scratch_[n] = p_[i];
        n += p_[i] >= floor && p_[i] > 0;
      }
    }
    scratch_.resize(n);
    return scratch_;
  }

  // The first id, in id order, at which the running weight of the entries >= cut passes `target`.
  // `mass(cut)` must have been called. Past the end (impossible for target < mass): the last one
  // kept.
  int64_t pick(float cut, uint64_t target) const {
    size_t b = 0;
    for (; b + 1 < mass_.size() && target >= mass_[b]; ++b) target -= mass_[b];
    int64_t last = 0;
    for (int64_t i = begin(b); i < end(b); ++i) {
      const uint64_t w = p_[i] >= cut ? weight(p_[i]) : 0;
      if (w == 0) continue;
      if (target < w) return i;
      target -= w;
      last = i;
    }
    return last;
  }

  int64_t argmax() const {
    for (size_t b = 0; b < max_.size(); ++b) {
      const int64_t i = max_[b] == best_ ? index_of(p_, begin(b), end(b), best_) : end(b);
      if (i < end(b)) return i;
    }
    return 0;
  }

 private:
  int64_t begin(size_t b) const { return static_cast<int64_t>(b) * kBlock; }
  int64_t end(size_t b) const { return std::min(width_, begin(b) + kBlock); }

  const float* p_ = nullptr;
  int64_t width_ = 0;
  float best_ = 0;
  std::vector<float> max_, scratch_;
  std::vector<uint64_t> mass_;
};

// What lies at or above a cut.
struct Upper {
  float cut;
  uint64_t count, mass;
  bool reached;
};

// Walks distinct values downward and stops at the first one at which `reached(count, mass)` of the
// entries at or above it is true; never: everything, `reached` false. Values positive; a radix
// descent over the float's bits (11, 10, 10 below the sign), which order positive floats.
template <typename F>
Upper walk_down(const std::vector<float>& values, F&& reached) {
  struct Bin {
    uint64_t count = 0, mass = 0;
  };
  Bin bins[2048], above;
  uint32_t prefix = 0, mask = 0;
  for (int shift = 20; shift >= 0; shift -= 10) {
    const uint32_t digit = shift == 20 ? 0x7ffu : 0x3ffu;
    std::fill(bins, bins + digit + 1, Bin{});
    for (float v : values) {
      const uint32_t u = as_bits(v);
      if ((u & mask) != prefix) continue;
      Bin& bin = bins[(u >> shift) & digit];
      bin.count += 1, bin.mass += weight(v);
    }
    int64_t d = digit;
    for (; d >= 0; --d) {
      if (bins[d].count == 0) continue;
      if (reached(above.count + bins[d].count, above.mass + bins[d].mass)) break;
      above.count += bins[d].count, above.mass += bins[d].mass;
    }
    if (d < 0) return {0, above.count, above.mass, false};
    prefix |= static_cast<uint32_t>(d) << shift, mask |= digit << shift;
    if (shift == 0) above.count += bins[d].count, above.mass += bins[d].mass;
  }
  return {as_float(prefix), above.count, above.mass, true};
}

// Keeps the k most probable entries, ties included: the k-th largest value (0: fewer than k).
inline Upper top_k_cut(MassRow& row, int64_t k, float floor) {
  const float known = std::max(floor, row.reached_by(k));
  const uint64_t wanted = static_cast<uint64_t>(k);
  return walk_down(row.candidates(known), [=](uint64_t n, uint64_t) { return n >= wanted; });
}

// Keeps i while the weight strictly above p_i is less than `bound` (> 0).
inline Upper top_p_cut(MassRow& row, double bound, float floor) {
  return walk_down(row.candidates(floor),
                   [=](uint64_t, uint64_t m) { return static_cast<double>(m) >= bound; });
}

// A value that every entry kept by top_p_cut reaches, given the weight of all entries: what lies
// below it cannot weigh as much as the tail. The margin covers the rounding of the weights.
inline float tail_floor(uint64_t total, double bound, int64_t width) {
  const double tail = (static_cast<double>(total) - bound) / kMassOne;
  const double value = tail / static_cast<double>(width) - 1e-14;
  return value > 0 ? static_cast<float>(value * 0.999999) : 0.0f;
}

struct Truncation {
  int64_t top_k;     // <= 0 or >= width: off
  float top_p;       // >= 1: off; <= 0: the most probable entry
  float min_p;       // <= 0: off
  bool renormalise;  // top_p counts after top-k's renormalisation (else on the values as they are)
};

// The id of one draw. The row is loaded.
inline int64_t sample_row(MassRow& row, const Truncation& t, uint64_t bits) {
  if (!(row.best() > 0) || t.top_p <= 0) return row.argmax();
  float cut = t.min_p > 0 ? row.best() * std::min(t.min_p, 1.0f) : 0.0f;
  double base = kMassOne;
  const float floor = cut;
  if (t.top_k > 0 && t.top_k < row.width()) {
    const Upper top = top_k_cut(row, t.top_k, cut);
    cut = std::max(cut, top.cut);
    if (t.renormalise && top.reached) base = static_cast<double>(top.mass);
  }
  if (t.top_p < 1) {
    const double bound = static_cast<double>(t.top_p) * base;
    float low = cut;
    if (cut == floor) low = std::max(cut, tail_floor(row.mass(cut), bound, row.width()));
    const Upper top = top_p_cut(row, bound, low);
    if (top.reached) cut = std::max(cut, top.cut);
  }
  const uint64_t total = row.mass(cut);
  return total == 0 ? row.argmax() : row.pick(cut, scale_bits(bits, total));
}

}  // namespace fd

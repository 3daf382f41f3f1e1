// Choosing experts: softmax scores of a row and the best k by score + bias.
#pragma once
#include <algorithm>
#include <cmath>

#include "fd/check.h"
#include "fd/math.h"
#include "fd/parallel.h"

namespace fd {
namespace moe {

constexpr int kMaxTopK = 256;

// The k best of the keys offered, best first; equal keys in the order offered, NaN after all
// others.
struct Best {
  int k, count = 0;
  float key[kMaxTopK], weight[kMaxTopK];
  int32_t id[kMaxTopK];

  explicit Best(int wanted) : k(wanted) {}

  static bool better(float a, float b) { return a > b || (b != b && a == a); }

  void offer(float candidate, float value, int32_t index) {
    if (count == k && !better(candidate, key[k - 1])) return;
    int at = count < k ? count++ : k - 1;
    for (; at > 0 && better(candidate, key[at - 1]); --at) move(at - 1, at);
    key[at] = candidate, weight[at] = value, id[at] = index;
  }

 private:
  void move(int from, int to) { key[to] = key[from], weight[to] = weight[from], id[to] = id[from]; }
};

// Offers `n` experts of one softmax (`raw`: the scores are used as they are). Without a bias the
// logits themselves are the keys: they order as the probabilities do, with no ties from rounding.
inline void offer_scores(const float* x, const float* bias, int32_t first, int64_t n, bool raw,
                         Best* best) {
  float top = x[first], sum = 1;
  if (!raw) {
    for (int64_t i = 0; i < n; ++i) top = std::max(x[first + i], top);
    vf sums{};
    for (int64_t i = 0; i < n; i += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
      vf e = vexp(load_tail(x + first + i, lanes) - splat(top));
      for (int l = lanes; l < kLanes; ++l) e[l] = 0;
      sums += e;
    }
    sum = sum16(sums);
  }
  for (int64_t i = 0; i < n; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, n - i));
    const vf logits = load_tail(x + first + i, lanes);
    const vf p = raw ? logits : vexp(logits - splat(top)) / splat(sum);
    for (int l = 0; l < lanes; ++l) {
      const int32_t id = first + static_cast<int32_t>(i) + l;
      best->offer(bias != nullptr ? p[l] + bias[id] : logits[l], p[l], id);
    }
  }
}

struct Router {
  const float* bias;  // null: none
  int64_t experts;
  int k;
  bool raw, grouped, normalised;

  // Grouped: slot j takes the best of the j-th of k runs of consecutive experts.
  template <typename Id>
  void row(const float* x, Id* ids, float* weights) const {
    Best best(grouped ? 1 : k);
    const int64_t run = grouped ? experts / k : experts;
    for (int j = 0; j < k; j += best.k) {
      best.count = 0;
      offer_scores(x, bias, static_cast<int32_t>(j * run), run, raw, &best);
      std::copy_n(best.id, best.k, ids + j);
      std::copy_n(best.weight, best.k, weights + j);
    }
    if (normalised) normalise(weights);
  }

  template <typename Id>
  void rows(const float* x, int64_t count, Id* ids, float* weights) const {
    const Router self = *this;
    parallel_for(count, 1 + 4096 / (experts + 1), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        self.row(x + r * self.experts, ids + r * self.k, weights + r * self.k);
    });
  }

 private:
  void normalise(float* weights) const {
    float sum = 0;
    for (int j = 0; j < k; ++j) sum += weights[j];
    for (int j = 0; j < k; ++j) weights[j] = sum == 0 ? 0.0f : weights[j] / sum;
  }
};

inline void check_top_k(const char* op, int64_t k, int64_t experts) {
  if (k < 1 || k > experts || k > kMaxTopK)
    fail("ValueError", op, ".moe_topk: want 1 .. ", std::min<int64_t>(experts, kMaxTopK), ", have ",
         k);
}

inline const float* bias_of(const char* op, const char* arg, OptTensor bias, int64_t experts) {
  if (!bias) return nullptr;
  Check{op, arg, bias}.dtype<float>("float32").numel(experts).contiguous();
  if (bias.ndim() == 0 || bias.size(-1) != experts)
    fail("ValueError", op, ".", arg, ": want [", experts, "] or [1, ", experts, "], have ",
         shape_text(bias));
  return bias.data<float>();
}

inline int64_t leading_rows(const Tensor& t) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < t.ndim(); ++i) rows *= t.size(i);
  return rows;
}

}  // namespace moe
}  // namespace fd

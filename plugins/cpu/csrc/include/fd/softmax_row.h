// Softmax of one row of logits over its temperature.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "fd/softmax.h"

namespace fd {

inline void scale_span(float* p, float factor, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) p[i] *= factor;
}

// One row, by segments that threads may share; the order of every sum is fixed.
struct SoftmaxRow {
  const float* x;
  float* out;
  int64_t width;
  float temperature;
  std::vector<float> parts = std::vector<float>(static_cast<size_t>(segments(width)));

  void run() {
    each([this](int64_t s, int64_t begin, int64_t end) { parts[s] = max_of(x, begin, end); });
    const float best = *std::max_element(parts.begin(), parts.end());
    const float inverse = 1.0f / temperature;
    if (!std::isfinite(best) || !std::isfinite(inverse)) return one_hot(best);
    each([=](int64_t s, int64_t begin, int64_t end) {
      parts[s] = exp_sum(x, best, inverse, begin, end, out);
    });
    double sum = 0;
    for (float part : parts) sum += part;
    const float factor = static_cast<float>(1.0 / sum);
    each([=](int64_t, int64_t begin, int64_t end) { scale_span(out, factor, begin, end); });
  }

  void one_hot(float best) {
    const int64_t hot = argmax_of(x, width, parts.data(), best);
    std::fill(out, out + width, 0.0f);
    out[hot] = 1;
  }

  template <typename F>
  void each(F&& body) {
    for_segments(1, width,
                 [&](int64_t, int64_t s, int64_t begin, int64_t end) { body(s, begin, end); });
  }
};

// Few rows share the threads among their segments; many are taken whole, each while it is in the
// cache.
template <typename F>
void for_rows(int64_t n, F&& body) {
  if (n >= num_threads()) {
    parallel_for(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) body(r);
    });
  } else {
    for (int64_t r = 0; r < n; ++r) body(r);
  }
}

}  // namespace fd

// Exponentials of a row segment and their sum, in one fixed order.
#pragma once
#include "fd/math.h"
#include "fd/vocab_row.h"

namespace fd {

// Sum of exp((x - max) * scale) over [begin, end), stored in `out` unless that is null. `max` is
// finite; NaN counts as -inf.
inline float exp_sum(const float* x, float max, float scale, int64_t begin, int64_t end,
                     float* out) {
  const vf lowest = splat(-kInf);
  vf sum{};
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const vf e = vexp((vmax(lowest, load16(x + i)) - max) * scale);
    if (out != nullptr) store16(out + i, e);
    sum += e;
  }
  if (i < end) {
    const int tail = static_cast<int>(end - i);
    vf v = lowest;
    for (int k = 0; k < tail; ++k) v[k] = x[i + k] > -kInf ? x[i + k] : -kInf;
    const vf e = vexp((v - max) * scale);
    if (out != nullptr) store_tail(out + i, e, tail);
    sum += e;
  }
  return sum16(sum);
}

}  // namespace fd

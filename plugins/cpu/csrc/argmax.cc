#include <vector>

#include "fd/checks/sampling.h"
#include "fd/vocab_row.h"

namespace fd {
namespace {

template <typename T>
void rows(Tensor logits, int64_t* out) {
  const int64_t n = logits.size(0), width = logits.size(1), step = logits.stride(0);
  const int64_t per_row = segments(width);
  const T* x = logits.data<T>();
  std::vector<float> maxima(static_cast<size_t>(n * per_row));
  for_segments(n, width, [&](int64_t r, int64_t s, int64_t begin, int64_t end) {
    maxima[r * per_row + s] = max_of(x + r * step, begin, end);
  });
  for (int64_t r = 0; r < n; ++r) {
    const float* m = &maxima[r * per_row];
    out[r] = argmax_of(x + r * step, width, m, *std::max_element(m, m + per_row));
  }
}

}  // namespace

void argmax(Tensor logits, Tensor out) {
  Check{"argmax", "logits", logits}.rank(2).inner_contiguous();
  int64_t* ids = per_row<int64_t>("argmax", "out", out, logits.size(0), "int64");
  check_columns("argmax", "logits", logits);
  dispatch_float("argmax", "logits", logits, [&](auto tag) {
    if (logits.size(0) > 0) rows<decltype(tag)>(logits, ids);
  });
}

FD_EXPORT(argmax)

}  // namespace fd

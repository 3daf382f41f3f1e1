#include "fd/checks/sampling.h"
#include "fd/vocab_row.h"

namespace fd {

void min_p_sampling(Tensor probs, Tensor min_p, Tensor renorm_probs) {
  const char* op = "min_p_sampling";
  const float* m = check_renormalised<float>(op, probs, "min_p", min_p, "float32", renorm_probs);
  const int64_t n = probs.size(0), width = probs.size(1);
  for (int64_t r = 0; r < n; ++r)
    if (!(m[r] >= 0 && m[r] <= 1))
      fail("ValueError", op, ".min_p: want values in [0, 1], have ", m[r], " in row ", r);
  const float* p = probs.data<float>();
  float* o = renorm_probs.data<float>();
  const int64_t ps = probs.stride(0), os = renorm_probs.stride(0);
  parallel_for(n, 1 + 16384 / (width + 1), [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *x = p + r * ps, pivot = max_of(x, 0, width) * m[r];
      float* out = o + r * os;
      for (int64_t i = 0; i < width; ++i) out[i] = x[i] >= pivot ? x[i] : 0.0f;
    }
  });
}

FD_EXPORT(min_p_sampling)

}  // namespace fd

#include "fd/ragged.h"

namespace fd {

void apply_logit_bias(Tensor logits, Tensor offsets, Tensor ids, Tensor values) {
  const char* op = "apply_logit_bias";
  check_lists(op, logits, offsets, ids);
  const int32_t* o = offsets.data<int32_t>();
  const int64_t *id = ids.data<int64_t>(), vocab = logits.size(1);
  const float* v = per_row<float>(op, "values", values, ids.numel(), "float32");
  dispatch_float(op, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t r = 0; r < logits.size(0); ++r) {
      T* x = logits.data<T>() + r * logits.stride(0);
      for (int64_t i = o[r]; i < o[r + 1]; ++i)
        if (id[i] >= 0 && id[i] < vocab) x[id[i]] = from_float<T>(to_float(x[id[i]]) + v[i]);
    }
  });
}

FD_EXPORT(apply_logit_bias)

}  // namespace fd

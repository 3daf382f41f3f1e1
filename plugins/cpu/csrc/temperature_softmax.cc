#include "fd/checks/sampling.h"
#include "fd/softmax_row.h"

namespace fd {

void temperature_softmax(Tensor logits, Tensor temperature, Tensor probs) {
  const char* op = "temperature_softmax";
  check_float_rows(op, "logits", logits);
  const int64_t n = logits.size(0), width = logits.size(1);
  const float* t = per_row<float>(op, "temperature", temperature, n, "float32");
  Check{op, "probs", probs}.same_shape(logits).dtype<float>("float32").inner_contiguous();
  for (int64_t r = 0; r < n; ++r)
    if (!(t[r] >= 0) || t[r] == kInf)
      fail("ValueError", op, ".temperature: want finite values >= 0, have ", t[r], " in row ", r);
  if (logits.numel() == 0) return;
  const float* x = logits.data<float>();
  float* out = probs.data<float>();
  const int64_t xs = logits.stride(0), os = probs.stride(0);
  for_rows(n, [=](int64_t r) { SoftmaxRow{x + r * xs, out + r * os, width, t[r]}.run(); });
}

FD_EXPORT(temperature_softmax)

}  // namespace fd

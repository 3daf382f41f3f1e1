#include "fd/checks/sampling.h"
#include "fd/select.h"
#include "fd/softmax_row.h"

namespace fd {
namespace {

constexpr const char* kOp = "sample_from_logits";

const float* temperatures(Tensor t, int64_t n) {
  const float* values = per_row<float>(kOp, "temperature", t, n, "float32");
  for (int64_t r = 0; r < n; ++r)
    if (!(values[r] >= 0) || values[r] == kInf)
      fail("ValueError", kOp, ".temperature: want finite values >= 0, have ", values[r], " in row ",
           r);
  return values;
}

}  // namespace

void sample_from_logits(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p,
                        Tensor seed, Tensor position, Tensor out) {
  check_float_rows(kOp, "logits", logits);
  const int64_t n = logits.size(0), width = logits.size(1), step = logits.stride(0);
  const float* t = temperatures(temperature, n);
  const RowChoices a = check_choices(kOp, n, top_k, top_p, min_p, seed, position, out);
  check_columns(kOp, "logits", logits);
  const float* x = logits.data<float>();
  for_rows(n, [=](int64_t r) {
    std::vector<float> probs(static_cast<size_t>(width));
    SoftmaxRow{x + r * step, probs.data(), width, t[r]}.run();
    MassRow row;
    row.load(probs.data(), width);
    const uint64_t bits =
        philox_bits(static_cast<uint64_t>(a.seeds[r]), static_cast<uint64_t>(a.positions[r]), 0);
    a.out[r] = sample_row(row, {a.top_k[r], a.top_p[r], a.min_p[r], true}, bits);
  });
}

FD_EXPORT(sample_from_logits)

}  // namespace fd

#include "fd/check.h"
#include "fd/select.h"
#include "fd/softmax_row.h"

namespace fd {
namespace {

constexpr const char* kOp = "sample_from_logits";

template <typename T>
T* per_row(const char* arg, Tensor t, int64_t n, const char* dtype) {
  Check{kOp, arg, t}.rank(1).dim(0, n).dtype<T>(dtype).contiguous();
  return t.data<T>();
}

const float* temperatures(Tensor t, int64_t n) {
  const float* values = per_row<float>("temperature", t, n, "float32");
  for (int64_t r = 0; r < n; ++r)
    if (!(values[r] >= 0) || values[r] == kInf)
      fail("ValueError", kOp, ".temperature: want finite values >= 0, have ", values[r], " in row ",
           r);
  return values;
}

}  // namespace

void sample_from_logits(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p,
                        Tensor seed, Tensor position, Tensor out) {
  Check{kOp, "logits", logits}.rank(2).dtype<float>("float32").inner_contiguous();
  const int64_t n = logits.size(0), width = logits.size(1), step = logits.stride(0);
  const float* t = temperatures(temperature, n);
  const int64_t* k = per_row<int64_t>("top_k", top_k, n, "int64");
  const float* tp = per_row<float>("top_p", top_p, n, "float32");
  const float* mp = per_row<float>("min_p", min_p, n, "float32");
  const int64_t* s = per_row<int64_t>("seed", seed, n, "int64");
  const int64_t* pos = per_row<int64_t>("position", position, n, "int64");
  int64_t* o = per_row<int64_t>("out", out, n, "int64");
  if (n > 0 && width == 0)
    fail("ValueError", kOp, ".logits: want at least one column, have ", shape_text(logits));
  const float* x = logits.data<float>();
  for_rows(n, [=](int64_t r) {
    std::vector<float> probs(static_cast<size_t>(width));
    SoftmaxRow{x + r * step, probs.data(), width, t[r]}.run();
    MassRow row;
    row.load(probs.data(), width);
    const uint64_t bits =
        philox_bits(static_cast<uint64_t>(s[r]), static_cast<uint64_t>(pos[r]), 0);
    o[r] = sample_row(row, {k[r], tp[r], mp[r], true}, bits);
  });
}

FD_EXPORT(sample_from_logits)

}  // namespace fd

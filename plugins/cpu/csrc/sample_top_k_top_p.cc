#include "fd/check.h"
#include "fd/select.h"

namespace fd {
namespace {

constexpr const char* kOp = "sample_top_k_top_p";

template <typename T>
void per_row(const char* arg, Tensor t, int64_t n, const char* dtype) {
  Check{kOp, arg, t}.rank(1).dim(0, n).dtype<T>(dtype).contiguous();
}

}  // namespace

void sample_top_k_top_p(Tensor probs, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed,
                        Tensor position, Tensor out) {
  Check{kOp, "probs", probs}.rank(2).dtype<float>("float32").inner_contiguous();
  const int64_t n = probs.size(0), width = probs.size(1), step = probs.stride(0);
  per_row<int64_t>("top_k", top_k, n, "int64");
  per_row<float>("top_p", top_p, n, "float32");
  per_row<float>("min_p", min_p, n, "float32");
  per_row<int64_t>("seed", seed, n, "int64");
  per_row<int64_t>("position", position, n, "int64");
  per_row<int64_t>("out", out, n, "int64");
  if (n > 0 && width == 0)
    fail("ValueError", kOp, ".probs: want at least one column, have ", shape_text(probs));
  const float *p = probs.data<float>(), *tp = top_p.data<float>(), *mp = min_p.data<float>();
  const int64_t *k = top_k.data<int64_t>(), *s = seed.data<int64_t>();
  const int64_t* pos = position.data<int64_t>();
  int64_t* o = out.data<int64_t>();
  parallel_for(n, 1, [=](int64_t begin, int64_t end) {
    MassRow row;
    for (int64_t r = begin; r < end; ++r) {
      row.load(p + r * step, width);
      const uint64_t bits =
          philox_bits(static_cast<uint64_t>(s[r]), static_cast<uint64_t>(pos[r]), 0);
      o[r] = sample_row(row, {k[r], tp[r], mp[r], true}, bits);
    }
  });
}

FD_EXPORT(sample_top_k_top_p)

}  // namespace fd

#include "fd/check.h"
#include "fd/select.h"

namespace fd {
namespace {

constexpr const char* kOp = "rejection_top_p_sampling";

void check_ids(const char* arg, Tensor t, int64_t n) {
  Check{kOp, arg, t}.slots(n).dtype<int64_t>("int64").contiguous();
}

const int64_t* check_optional(const char* arg, OptTensor t, int64_t n) {
  if (t) check_ids(arg, t, n);
  return t ? t.data<int64_t>() : nullptr;
}

}  // namespace

void rejection_top_p_sampling(Tensor probs, Tensor top_p, OptTensor top_k, int64_t seed,
                              OptTensor row_seeds, OptTensor positions, Tensor samples) {
  Check{kOp, "probs", probs}.rank(2).dtype<float>("float32").inner_contiguous();
  const int64_t n = probs.size(0), width = probs.size(1), step = probs.stride(0);
  Check{kOp, "top_p", top_p}.slots(n).dtype<float>("float32").contiguous();
  const int64_t* k = check_optional("top_k", top_k, n);
  const int64_t* seeds = check_optional("row_seeds", row_seeds, n);
  const int64_t* pos = check_optional("positions", positions, n);
  check_ids("samples", samples, n);
  if (seeds == nullptr && seed < 0)
    fail("ValueError", kOp, ".seed: want >= 0 (the caller draws one for -1), have ", seed);
  if ((seeds == nullptr) != (pos == nullptr))
    fail("ValueError", kOp, ".positions: want it together with row_seeds, or neither");
  if (n > 0 && width == 0)
    fail("ValueError", kOp, ".probs: want at least one column, have ", shape_text(probs));
  const float *p = probs.data<float>(), *tp = top_p.data<float>();
  int64_t* o = samples.data<int64_t>();
  parallel_for(n, 1, [=](int64_t begin, int64_t end) {
    MassRow row;
    for (int64_t r = begin; r < end; ++r) {
      row.load(p + r * step, width);
      const uint64_t bits =
          seeds != nullptr
              ? philox_bits(static_cast<uint64_t>(seeds[r]), static_cast<uint64_t>(pos[r]), 0)
              : philox_bits(static_cast<uint64_t>(seed), 0, static_cast<uint64_t>(r));
      o[r] = sample_row(row, {k != nullptr ? k[r] : 0, tp[r], 0.0f, false}, bits);
    }
  });
}

FD_EXPORT(rejection_top_p_sampling)

}  // namespace fd

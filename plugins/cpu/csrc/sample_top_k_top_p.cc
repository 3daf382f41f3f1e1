#include "fd/checks/sampling.h"
#include "fd/select.h"

namespace fd {
void sample_top_k_top_p(Tensor probs, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed,
                        Tensor position, Tensor out) {
  const char* op = "sample_top_k_top_p";
  check_float_rows(op, "probs", probs);
  const int64_t n = probs.size(0), width = probs.size(1), step = probs.stride(0);
  const RowChoices a = check_choices(op, n, top_k, top_p, min_p, seed, position, out);
  check_columns(op, "probs", probs);
  const float* p = probs.data<float>();
  parallel_for(n, 1, [=](int64_t begin, int64_t end) {
    MassRow row;
    for (int64_t r = begin; r < end; ++r) {
      row.load(p + r * step, width);
      const uint64_t bits =
          philox_bits(static_cast<uint64_t>(a.seeds[r]), static_cast<uint64_t>(a.positions[r]), 0);
      a.out[r] = sample_row(row, {a.top_k[r], a.top_p[r], a.min_p[r], true}, bits);
    }
  });
}

FD_EXPORT(sample_top_k_top_p)

}  // namespace fd

#include "fd/checks/sampling.h"
#include "fd/select.h"

namespace fd {
void rejection_top_p_sampling(Tensor probs, Tensor top_p, OptTensor top_k, int64_t seed,
                              OptTensor row_seeds, OptTensor positions, Tensor samples) {
  const char* op = "rejection_top_p_sampling";
  const RowChoices a =
      check_rejection(op, probs, top_p, top_k, seed, row_seeds, positions, samples);
  const int64_t n = probs.size(0), width = probs.size(1), step = probs.stride(0);
  const float* p = probs.data<float>();
  parallel_for(n, 1, [=](int64_t begin, int64_t end) {
    MassRow row;
    for (int64_t r = begin; r < end; ++r) {
      row.load(p + r * step, width);
      const uint64_t bits =
          a.seeds != nullptr
              ? philox_bits(static_cast<uint64_t>(a.seeds[r]),
                            static_cast<uint64_t>(a.positions[r]), 0)
              : philox_bits(static_cast<uint64_t>(seed), 0, static_cast<uint64_t>(r));
      a.out[r] =
          sample_row(row, {a.top_k != nullptr ? a.top_k[r] : 0, a.top_p[r], 0.0f, false}, bits);
    }
  });
}

FD_EXPORT(rejection_top_p_sampling)

}  // namespace fd

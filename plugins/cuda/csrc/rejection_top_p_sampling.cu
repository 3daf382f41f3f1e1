#include "fd/sample.cuh"

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

inline const int64_t* rejection_ids(const char* arg, OptTensor t, int64_t n) {
  return t ? per_slot<int64_t>("rejection_top_p_sampling", arg, t, n, "int64") : nullptr;
}

void rejection_top_p_sampling(Tensor probs, Tensor top_p, OptTensor top_k, int64_t seed,
                              OptTensor row_seeds, OptTensor positions, Tensor samples) {
  const char* op = "rejection_top_p_sampling";
  Check{op, "probs", probs}.dtype<float>("float32");
  check_vocab(op, "probs", probs);
  const int64_t n = probs.size(0);
  const Draws draws{rejection_ids("top_k", top_k, n),
                    per_slot<float>(op, "top_p", top_p, n, "float32"),
                    nullptr,
                    rejection_ids("row_seeds", row_seeds, n),
                    rejection_ids("positions", positions, n),
                    seed,
                    false,
                    per_slot<int64_t>(op, "samples", samples, n, "int64")};
  if (draws.seeds == nullptr && seed < 0)
    fail("ValueError", op, ".seed: want >= 0 (the caller draws one for -1), have ", seed);
  if ((draws.seeds == nullptr) != (draws.positions == nullptr))
    fail("ValueError", op, ".positions: want it together with row_seeds, or neither");
  same_device(op, probs, {top_p, top_k, row_seeds, positions, samples});
  if (n == 0) return;
  const Launch on = launch_on(op, probs);
  const PartsJob job = parts_job(on, probs);
  run_parts<false>(on, probs, job);
  run_teams(on, sample_rows<false>, n, kSelectThreads, job, draws);
}
FD_EXPORT(rejection_top_p_sampling)

}  // namespace fd
#endif

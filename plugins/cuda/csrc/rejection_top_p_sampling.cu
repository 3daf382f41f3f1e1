#include "fd/sample.cuh"

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void rejection_top_p_sampling(Tensor probs, Tensor top_p, OptTensor top_k, int64_t seed,
                              OptTensor row_seeds, OptTensor positions, Tensor samples) {
  const char* op = "rejection_top_p_sampling";
  const RowChoices a =
      check_rejection(op, probs, top_p, top_k, seed, row_seeds, positions, samples);
  check_vocab(op, "probs", probs);
  const int64_t n = probs.size(0);
  const Draws draws{a.top_k, a.top_p, nullptr, a.seeds, a.positions, seed, false, a.out};
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

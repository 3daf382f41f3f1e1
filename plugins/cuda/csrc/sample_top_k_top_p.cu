#include "fd/sample.cuh"

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void sample_top_k_top_p(Tensor probs, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed,
                        Tensor position, Tensor out) {
  const char* op = "sample_top_k_top_p";
  check_float_rows(op, "probs", probs);
  check_vocab(op, "probs", probs);
  const int64_t n = probs.size(0);
  const RowChoices a = check_choices(op, n, top_k, top_p, min_p, seed, position, out);
  const Draws draws{a.top_k, a.top_p, a.min_p, a.seeds, a.positions, 0, true, a.out};
  same_device(op, probs, {top_k, top_p, min_p, seed, position, out});
  if (n == 0) return;
  const Launch on = launch_on(op, probs);
  const PartsJob job = parts_job(on, probs);
  run_parts<false>(on, probs, job);
  run_teams(on, sample_rows<false>, n, kSelectThreads, job, draws);
}
FD_EXPORT(sample_top_k_top_p)

}  // namespace fd
#endif

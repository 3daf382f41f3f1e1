#include "fd/sample.cuh"

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void sample_top_k_top_p(Tensor probs, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed,
                        Tensor position, Tensor out) {
  const char* op = "sample_top_k_top_p";
  Check{op, "probs", probs}.dtype<float>("float32");
  check_vocab(op, "probs", probs);
  const int64_t n = probs.size(0);
  const Draws draws{per_row<int64_t>(op, "top_k", top_k, n, "int64"),
                    per_row<float>(op, "top_p", top_p, n, "float32"),
                    per_row<float>(op, "min_p", min_p, n, "float32"),
                    per_row<int64_t>(op, "seed", seed, n, "int64"),
                    per_row<int64_t>(op, "position", position, n, "int64"),
                    0,
                    true,
                    per_row<int64_t>(op, "out", out, n, "int64")};
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

#include "fd/sample.cuh"

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void sample_from_logits(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p,
                        Tensor seed, Tensor position, Tensor out) {
  const char* op = "sample_from_logits";
  Check{op, "logits", logits}.dtype<float>("float32");
  check_vocab(op, "logits", logits);
  const int64_t n = logits.size(0);
  const Draws draws{per_row<int64_t>(op, "top_k", top_k, n, "int64"),
                    per_row<float>(op, "top_p", top_p, n, "float32"),
                    per_row<float>(op, "min_p", min_p, n, "float32"),
                    per_row<int64_t>(op, "seed", seed, n, "int64"),
                    per_row<int64_t>(op, "position", position, n, "int64"),
                    0,
                    true,
                    per_row<int64_t>(op, "out", out, n, "int64")};
  const float* t = per_row<float>(op, "temperature", temperature, n, "float32");
  same_device(op, logits, {temperature, top_k, top_p, min_p, seed, position, out});
  if (n == 0) return;
  const Launch on = launch_on(op, logits);
  PartsJob job = parts_job(on, logits);
  job.temperature = t;
  run_parts<true>(on, logits, job);
  run_teams(on, sample_rows<true>, n, kSelectThreads, job, draws);
}
FD_EXPORT(sample_from_logits)

}  // namespace fd
#endif

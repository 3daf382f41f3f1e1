#include "fd/sample.cuh"

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void sample_from_logits(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p,
                        Tensor seed, Tensor position, Tensor out) {
  const char* op = "sample_from_logits";
  check_float_rows(op, "logits", logits);
  check_vocab(op, "logits", logits);
  const int64_t n = logits.size(0);
  const RowChoices a = check_choices(op, n, top_k, top_p, min_p, seed, position, out);
  const Draws draws{a.top_k, a.top_p, a.min_p, a.seeds, a.positions, 0, true, a.out};
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

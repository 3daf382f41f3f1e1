#include "fd/vocab_parts.cuh"

namespace fd {

// One block a segment, behind vocab_parts. `out` may be the probabilities.
__global__ void __launch_bounds__(kSegmentThreads)
    min_p_sampling_rows(PartsJob job, const float* min_p, float* out, int64_t out_step) {
  wait_for_inputs();
  const int64_t segments = segments_of(job.rows.width), row = blockIdx.x / segments;
  const int64_t g = blockIdx.x % segments * kSegmentThreads + threadIdx.x;
  const Group group(job.rows, row, g);
  const RowTotal total = row_total(job.parts + row * segments, static_cast<int>(segments), 0.f);
  const float pivot = total.max * min_p[row];
  group.each([&](float p, int v, int i) {
    const int64_t at = pack_start(g, v) + i;
    if (at < job.rows.width) out[row * out_step + at] = p >= pivot ? p : 0.f;
  });
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void min_p_sampling(Tensor probs, Tensor min_p, Tensor renorm_probs) {
  const char* op = "min_p_sampling";
  const float* fraction =
      check_renormalised<float>(op, probs, "min_p", min_p, "float32", renorm_probs);
  same_device(op, probs, {min_p, renorm_probs});
  if (probs.numel() == 0) return;
  check_vocab(op, "probs", probs);
  const Launch on = launch_on(op, probs);
  const PartsJob job = parts_job(on, probs, false);
  run_parts<false>(on, probs, job);
  run_overlapped(on, min_p_sampling_rows, vocab_grid(probs), dim3(kSegmentThreads), 0, job,
                 fraction, renorm_probs.data<float>(), renorm_probs.stride(0));
}
FD_EXPORT(min_p_sampling)

}  // namespace fd
#endif

#include "fd/vocab_parts.cuh"

namespace fd {

// One block a segment, behind vocab_parts. `out` may be the logits: a thread writes what it has
// read.
__global__ void __launch_bounds__(kSegmentThreads)
    temperature_softmax_rows(PartsJob job, float* out, int64_t out_step, bool out_aligned) {
  wait_for_inputs();
  const int64_t segments = segments_of(job.rows.width), width = job.rows.width;
  const int64_t block = gridDim.x - 1 - blockIdx.x, row = block / segments;
  const int64_t g = block % segments * kSegmentThreads + threadIdx.x;
  Group group(job.rows, row, g);
  const float temperature = job.temperature[row], scale = exp_scale(temperature);
  const RowTotal total = row_total(job.parts + row * segments, static_cast<int>(segments), scale);
  const bool hot = one_hot(temperature) || fabsf(total.max) == INFINITY;
  const int64_t hottest = total.hot == 0x7fffffff ? 0 : total.hot;
  const float factor = 1.f / total.sum;
#pragma unroll
  for (int v = 0; v < kGroupPacks; ++v) {
    const int64_t at = pack_start(g, v);
    Vec<float, 4>& pack = group.packs[v];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pack[i] =
          hot ? (at + i == hottest ? 1.f : 0.f) : exp_below(pack[i], total.max, scale) * factor;
    float* to = out + row * out_step + at;
    if (out_aligned && at + 4 <= width) {
      *reinterpret_cast<Vec<float, 4>*>(to) = pack;
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (at + i < width) to[i] = pack[i];
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void temperature_softmax(Tensor logits, Tensor temperature, Tensor probs) {
  const char* op = "temperature_softmax";
  check_float_rows(op, "logits", logits);
  const float* t = per_row<float>(op, "temperature", temperature, logits.size(0), "float32");
  Check{op, "probs", probs}.same_shape(logits).dtype<float>("float32").inner_contiguous();
  same_device(op, logits, {temperature, probs});
  if (logits.numel() == 0) return;
  check_vocab(op, "logits", logits);
  const Launch on = launch_on(op, logits);
  PartsJob job = parts_job(on, logits, false);
  job.temperature = t;
  run_parts<true>(on, logits, job);
  run_overlapped(on, temperature_softmax_rows, vocab_grid(logits), dim3(kSegmentThreads), 0, job,
                 probs.data<float>(), probs.stride(0), rows_aligned(probs, sizeof(float)));
}
FD_EXPORT(temperature_softmax)

}  // namespace fd
#endif

#include "fd/select.cuh"

namespace fd {

// What becomes of a row: entries >= cut (and > 0) over `total`; `total` 0: the row as it is.
struct TopKRenormCut {
  float cut, total;
};

__device__ double top_k_renorm_sum(const MassRow<AsProbability>& row, float cut, double* warps) {
  double sum = 0;
  row.each(cut, [&](float p, int) { sum += p; });
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kSelectThreads / kWarp; ++w) sum += warps[w];
  return sum;
}

// One block a row, behind vocab_parts.
__global__ void __launch_bounds__(kSelectThreads)
    top_k_renorm_probs_cuts(PartsJob job, const int64_t* top_k, TopKRenormCut* cuts) {
  __shared__ SelectShared shared;
  __shared__ double warps[kWarp];
  wait_for_inputs();
  const int64_t row = blockIdx.x, segments = segments_of(job.rows.width), k = top_k[row];
  const int64_t groups = segments * kSegmentThreads;
  TopKRenormCut found{0.f, 0.f};
  if (k > 0 && k < job.rows.width) {
    const RowTotal total = row_total(job.parts + row * segments, static_cast<int>(segments), 0.f);
    const MassRow<AsProbability> masses{
        job.rows, row, job.groups + row * groups, groups, {}, total.max, Team::solo()};
    const float floor = total.max > 0.f ? reached_by(masses, k, shared) : 0.f;
    const Entries<AsProbability> entries(masses, shared, floor, true);
    const uint32_t wanted = static_cast<uint32_t>(k);
    const Upper top = walk_down<true>(entries, [=](Above a) { return a.count >= wanted; });
    found = {top.cut, 1.f};
    if (top.reached)
      found.total = fmaxf(static_cast<float>(top_k_renorm_sum(masses, top.cut, warps)), 1e-8f);
  }
  if (threadIdx.x == 0) cuts[row] = found;
}

// One block a segment. `out` may be the probabilities.
__global__ void __launch_bounds__(kSegmentThreads)
    top_k_renorm_probs_rows(VocabRows rows, const TopKRenormCut* cuts, float* out,
                            int64_t out_step) {
  wait_for_inputs();
  const int64_t segments = segments_of(rows.width), row = blockIdx.x / segments;
  const int64_t g = blockIdx.x % segments * kSegmentThreads + threadIdx.x;
  const Group group(rows, row, g);
  const TopKRenormCut cut = cuts[row];
  group.each([&](float p, int v, int i) {
    const int64_t at = pack_start(g, v) + i;
    const float kept = p >= cut.cut && p > 0.f ? p / cut.total : 0.f;
    if (at < rows.width) out[row * out_step + at] = cut.total == 0.f ? p : kept;
  });
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void top_k_renorm_probs(Tensor probs, Tensor top_k, Tensor renorm_probs) {
  const char* op = "top_k_renorm_probs";
  const int64_t* k = check_renormalised<int64_t>(op, probs, "top_k", top_k, "int64", renorm_probs);
  same_device(op, probs, {top_k, renorm_probs});
  if (probs.numel() == 0) return;
  check_vocab(op, "probs", probs);
  const Launch on = launch_on(op, probs);
  const int64_t n = probs.size(0);
  const PartsJob job = parts_job(on, probs, true, n * sizeof(TopKRenormCut));
  auto* cuts = static_cast<TopKRenormCut*>(job.extra);
  run_parts<false>(on, probs, job);
  run_overlapped(on, top_k_renorm_probs_cuts, dim3(static_cast<unsigned>(n)), dim3(kSelectThreads),
                 0, job, k, cuts);
  run_overlapped(on, top_k_renorm_probs_rows, vocab_grid(probs), dim3(kSegmentThreads), 0, job.rows,
                 static_cast<const TopKRenormCut*>(cuts), renorm_probs.data<float>(),
                 renorm_probs.stride(0));
}
FD_EXPORT(top_k_renorm_probs)

}  // namespace fd
#endif

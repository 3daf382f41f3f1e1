// First pass over rows as long as a vocabulary: maxima and sums of segments, maxima of groups.
#pragma once
#include "fd/overlap.cuh"
#include "fd/vocab_row.cuh"

namespace fd {

struct PartsJob {
  VocabRows rows;
  const float* temperature;  // [rows]; null: 1
  const int64_t* tokens;     // [rows] whose ranks are wanted; null: none
  RowPart* parts;            // [rows, segments]
  float* groups;             // [rows, segments * kSegmentThreads] maxima; null: not wanted
  void* extra;               // the op's own, behind them
};

// The segment's share of a softmax's denominator; of a segment without numbers above -inf, its
// size.
__device__ __forceinline__ float part_exp_sum(const Group& group, float max, float scale,
                                              int64_t size, float* scratch) {
  if (max == -INFINITY) return static_cast<float>(size);
  float sum = 0.f;
  group.each([&](float x, int, int) { sum += exp_below(x, max, scale); });
  return block_reduce<Sum>(sum, scratch);
}

__device__ __forceinline__ int part_rank(const Group& group, const VocabRows& rows, int64_t row,
                                         int64_t token, int64_t size, float* scratch) {
  const int64_t id = min(max(token, int64_t{0}), rows.width - 1);  // the host cannot see it
  const float value = fmaxf(rows.data[row * rows.step + id], -INFINITY);
  if (value == -INFINITY) return static_cast<int>(size);
  float count = 0.f;  // at most 8192: exact
  group.each([&](float x, int, int) { count += x >= value ? 1.f : 0.f; });
  return static_cast<int>(block_reduce<Sum>(count, scratch));
}

__device__ __forceinline__ float part_mass(const Group& group, float* scratch) {
  float sum = 0.f;
  group.each([&](float p, int, int) { sum += p > 0.f ? fminf(p, 1.f) : 0.f; });
  return block_reduce<Sum>(sum, scratch);
}

// One block a segment. Softmax: the rows are logits; otherwise probabilities.
template <bool Softmax>
__global__ void __launch_bounds__(kSegmentThreads) vocab_parts(PartsJob job) {
  __shared__ float scratch[3][kWarp];
  __shared__ int ids[kWarp];
  wait_for_inputs();
  const int64_t segments = segments_of(job.rows.width);
  const int64_t row = blockIdx.x / segments, segment = blockIdx.x % segments;
  const int64_t g = segment * kSegmentThreads + threadIdx.x;
  const int64_t size = min(static_cast<int64_t>(kSegment), job.rows.width - segment * kSegment);
  const bool tempered = Softmax && job.temperature != nullptr;
  const float temperature = tempered ? job.temperature[row] : 1.f;
  const Group group(job.rows, row, g);
  let_next_start();
  const float own = group.max(), best = block_reduce<Max>(own, scratch[0]);
  RowPart part{best, 0.f, 0x7fffffff, 0};
  if (job.groups != nullptr) job.groups[row * segments * kSegmentThreads + g] = own;
  if constexpr (Softmax) {
    if (one_hot(temperature) || fabsf(best) == INFINITY)
      part.hot = block_min(group.find(best, g), ids);
    if (!one_hot(temperature))
      part.sum = part_exp_sum(group, best, exp_scale(temperature), size, scratch[1]);
    if (job.tokens != nullptr)
      part.count = part_rank(group, job.rows, row, job.tokens[row], size, scratch[2]);
  } else {
    part.sum = part_mass(group, scratch[1]);
  }
  if (threadIdx.x == 0) job.parts[row * segments + segment] = part;
}

}  // namespace fd

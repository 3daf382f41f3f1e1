#include "fd/select.cuh"

namespace fd {

struct TopLogprobs {
  int64_t k;
  float* token_logprob;
  int64_t* rank;
  int64_t* ids;     // [n, k]
  float* logprobs;  // [n, k]
};

// log softmax of a row; entries equal to an infinite maximum share it.
struct LogSoftmax {
  float max, log_sum;
  __device__ __forceinline__ float operator()(float x) const {
    const float difference = x == max ? 0.f : x - max;
    return fmaxf(difference - log_sum, -3.402823466e38f);
  }
};

// A row's entries as (value, id), NaN as -inf: no two are equal.
struct TopEntries {
  VocabRows rows;
  int64_t row;
  const float* groups;
  int64_t num_groups;

  // f(value, id) for the entries of groups whose maximum is at least `floor` in order.
  template <typename F>
  __device__ __forceinline__ void each(uint32_t floor, F&& f) const {
    for (int64_t g = threadIdx.x; g < num_groups; g += kSelectThreads) {
      if (float_order(groups[g]) < floor) continue;
      const Group group(rows, row, g);
      group.each([&](float x, int v, int i) {
        const int64_t id = pack_start(g, v) + i;
        if (id < rows.width) f(fmaxf(x, -INFINITY), static_cast<int>(id));
      });
    }
  }
};

// An order that at least k entries reach: the k-th largest of the threads' maxima, or somewhat
// less.
__device__ uint32_t top_floor(const TopEntries& entries, int64_t k) {
  if (k > kSelectThreads) return 0;
  uint32_t own = 0;
  for (int64_t g = threadIdx.x; g < entries.num_groups; g += kSelectThreads)
    own = max(own, float_order(entries.groups[g]));
  const int wanted = static_cast<int>(k);
  uint32_t low = 0, high = 0xffffffffu;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const int reach = __syncthreads_count(own >= middle);
    (reach >= wanted ? low : high) = middle;
    if (reach >= wanted && reach <= wanted + wanted / 8) break;
  }
  return low;
}

// The key that exactly `wanted` keys below `last` reach: a radix descent, 11 bits at a time.
__device__ __noinline__ uint64_t top_threshold(const TopEntries entries, uint64_t last,
                                               uint32_t wanted, SelectShared& s) {
  Above above{0, 0};
  uint64_t prefix = 0, mask = 0;
  for (int shift = 53; shift >= 0; shift = shift > 9 ? shift - 11 : shift - 9) {
    const int bins = shift == 0 ? kBins / 4 : kBins;
    for (int b = threadIdx.x; b < bins; b += kSelectThreads) s.low[b] = s.high[b] = s.count[b] = 0;
    __syncthreads();
    entries.each(0, [&](float x, int id) {
      const uint64_t key = order_key(x, id);
      if (key < last && (key & mask) == prefix) atomicAdd(&s.count[key >> shift & (bins - 1)], 1u);
    });
    __syncthreads();
    find_bin<true>(s, bins, above, Team::solo(), [=](Above a) { return a.count >= wanted; });
    above.count = s.found_count;
    prefix |= static_cast<uint64_t>(s.found) << shift;
    mask |= static_cast<uint64_t>(bins - 1) << shift;
    __syncthreads();
  }
  return prefix;
}

// Entries with least <= key < last, at most kCandidates of which are held; how many there are.
__device__ __forceinline__ int top_hold(const TopEntries& entries, uint64_t least, uint64_t last,
                                        SelectShared& s) {
  if (threadIdx.x == 0) s.used = 0;
  __syncthreads();
  entries.each(static_cast<uint32_t>(least >> 32), [&](float x, int id) {
    const uint64_t key = order_key(x, id);
    if (key < least || key >= last || *const_cast<volatile int*>(&s.used) > kCandidates) return;
    const int at = atomicAdd(&s.used, 1);
    if (at < kCandidates) s.value[at] = x, s.id[at] = id;
  });
  __syncthreads();
  return s.used;
}

// Writes the best `wanted` of the `held` entries in order; returns the last one's key.
__device__ uint64_t top_write(const TopLogprobs& out, int64_t at, int held, int wanted,
                              const LogSoftmax& logprob, SelectShared& s) {
  for (int i = threadIdx.x; i < held; i += kSelectThreads) {
    const uint64_t key = order_key(s.value[i], s.id[i]);
    int place = 0;
    for (int j = 0; j < held; ++j) place += order_key(s.value[j], s.id[j]) > key;
    if (place >= wanted) continue;
    out.ids[at + place] = s.id[i], out.logprobs[at + place] = logprob(s.value[i]);
    if (place == wanted - 1) s.found_mass = key;
  }
  __syncthreads();
  return s.found_mass;
}

__device__ void top_entries(const TopLogprobs& out, const TopEntries& entries,
                            const LogSoftmax& logprob, SelectShared& s) {
  uint64_t last = ~uint64_t{0};
  for (int64_t done = 0; done < out.k;) {
    const int64_t left = out.k - done;
    int wanted = static_cast<int>(min(left, static_cast<int64_t>(kCandidates / 2)));
    const uint64_t floor = done == 0 && left == wanted ? top_floor(entries, left) : 0;
    int held = top_hold(entries, floor << 32, last, s);
    if (held > kCandidates) {
      const uint64_t least = top_threshold(entries, last, static_cast<uint32_t>(wanted), s);
      held = top_hold(entries, least, last, s);
    } else {
      wanted = static_cast<int>(min(left, static_cast<int64_t>(held)));
    }
    last = top_write(out, entries.row * out.k + done, held, wanted, logprob, s);
    done += wanted;
    __syncthreads();
  }
}

// One block a row, behind vocab_parts.
__global__ void __launch_bounds__(kSelectThreads) top_logprobs_rows(PartsJob job, TopLogprobs out) {
  __shared__ SelectShared shared;
  wait_for_inputs();
  const int64_t row = blockIdx.x, segments = segments_of(job.rows.width);
  const int64_t groups = segments * kSegmentThreads;
  const RowTotal total =
      row_total(job.parts + row * segments, static_cast<int>(segments), exp_scale(1.f));
  const LogSoftmax logprob{total.max, logf(total.sum)};
  if (threadIdx.x == 0) {
    const int64_t id = min(max(job.tokens[row], int64_t{0}), job.rows.width - 1);
    out.token_logprob[row] = logprob(fmaxf(job.rows.data[row * job.rows.step + id], -INFINITY));
    out.rank[row] = total.count;
  }
  top_entries(out, {job.rows, row, job.groups + row * groups, groups}, logprob, shared);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

void top_logprobs(Tensor logits, Tensor token_ids, int64_t k, Tensor token_logprob, Tensor rank,
                  Tensor ids, Tensor logprobs) {
  const char* op = "top_logprobs";
  check_top_logprobs(op, logits, token_ids, k, token_logprob, rank, ids, logprobs);
  check_vocab(op, "logits", logits);
  const int64_t n = logits.size(0);
  const TopLogprobs out{k, token_logprob.data<float>(), rank.data<int64_t>(), ids.data<int64_t>(),
                        logprobs.data<float>()};
  same_device(op, logits, {token_ids, token_logprob, rank, ids, logprobs});
  if (n == 0) return;
  const Launch on = launch_on(op, logits);
  PartsJob job = parts_job(on, logits);
  job.tokens = token_ids.data<int64_t>();
  run_parts<true>(on, logits, job);
  run_overlapped(on, top_logprobs_rows, dim3(static_cast<unsigned>(n)), dim3(kSelectThreads), 0,
                 job, out);
}
FD_EXPORT(top_logprobs)

}  // namespace fd
#endif

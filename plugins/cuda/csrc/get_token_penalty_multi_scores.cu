#include "fd/edit_rows.cuh"

namespace fd {

// A row's scores, of the logits' type or float32.
template <typename T>
struct PenaltyScore {
  const void* data;
  bool wide;
  __device__ __forceinline__ float operator[](int64_t row) const {
    return wide ? static_cast<const float*>(data)[row] : to_float(static_cast<const T*>(data)[row]);
  }
};

struct PenaltyIds {
  const int64_t* ids;
  int64_t step, width;
};

template <typename T>
struct PenaltyArgs {
  EditRows<T> rows;
  PenaltyIds pre, prompt, bad;
  const int64_t *prompt_len, *bad_len, *cur_len, *min_len;
  PenaltyScore<T> alpha, beta, gamma;
  const float* temperature;
  const int64_t* eos;
  int64_t num_eos;
  float low, masked;  // for ends before the minimum length, for bad tokens
};

// What a block knows of a token of its span: how often it was generated, and these marks.
constexpr uint32_t kPenaltyPrompt = 1u << 31, kPenaltyEos = 1u << 30, kPenaltyBad = 1u << 29;
constexpr uint32_t kPenaltyCount = kPenaltyBad - 1;

// Visits those of `count` ids that lie in [begin, end).
template <typename F>
__device__ __forceinline__ void penalty_each(const int64_t* ids, int64_t count, int64_t begin,
                                             int64_t end, F&& f) {
  for (int64_t i = threadIdx.x; i < count; i += kEditThreads)
    if (ids[i] >= begin && ids[i] < end) f(static_cast<int>(ids[i] - begin));
}

template <typename T>
__device__ void penalty_marks(const PenaltyArgs<T>& a, int64_t row, int64_t begin, int64_t end,
                              uint32_t* marks) {
  const auto mark = [&](uint32_t bit) { return [=](int i) { atomicOr(&marks[i], bit); }; };
  const int64_t current = a.cur_len[row];
  if (current >= 0) {
    penalty_each(a.pre.ids + row * a.pre.step, a.pre.width, begin, end,
                 [&](int i) { atomicAdd(&marks[i], 1u); });
    penalty_each(a.prompt.ids + row * a.prompt.step, min(a.prompt.width, a.prompt_len[row]), begin,
                 end, mark(kPenaltyPrompt));
    if (current < a.min_len[row]) penalty_each(a.eos, a.num_eos, begin, end, mark(kPenaltyEos));
  }
  penalty_each(a.bad.ids + row * a.bad.step, min(a.bad.width, a.bad_len[row]), begin, end,
               mark(kPenaltyBad));
}

template <typename T>
struct PenaltyRow {
  float alpha, beta, gamma, temperature, low, masked;

  __device__ __forceinline__ T operator()(T logit, uint32_t mark) const {
    if (mark & kPenaltyBad) return from_float<T>(masked);
    float x = to_float(mark & kPenaltyEos ? from_float<T>(low) : logit);
    const uint32_t count = mark & kPenaltyCount;
    if (count > 0 || mark & kPenaltyPrompt) x = x < 0.f ? x * alpha : x / alpha;
    if (count > 0) x = x - static_cast<float>(count) * beta - gamma;
    return from_float<T>(x / temperature);
  }
};

template <typename T>
__global__ void __launch_bounds__(kEditThreads) get_token_penalty_rows(PenaltyArgs<T> a) {
  __shared__ uint32_t marks[kEditSpan];
  const int64_t row = a.rows.row(), begin = a.rows.begin(), end = a.rows.end();
  for (int i = threadIdx.x; i < kEditSpan; i += kEditThreads) marks[i] = 0;
  __syncthreads();
  penalty_marks(a, row, begin, end, marks);
  __syncthreads();
  const PenaltyRow<T> value{a.alpha[row],       a.beta[row], a.gamma[row],
                            a.temperature[row], a.low,       a.masked};
  T* x = a.rows.at(row);
  for (int64_t i = begin + threadIdx.x; i < end; i += kEditThreads)
    if (marks[i - begin] != 0 || value.temperature != 1.f) x[i] = value(x[i], marks[i - begin]);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/edit_rows.h"

namespace fd {

constexpr const char* kPenaltyOp = "get_token_penalty_multi_scores";

inline PenaltyIds penalty_ids(Tensor t) { return {t.data<int64_t>(), t.stride(0), t.size(1)}; }

template <typename T>
PenaltyArgs<T> penalty_args(const PenaltyTensors& t) {
  const auto score = [](Tensor s) { return PenaltyScore<T>{s.data<char>(), is<float>(s)}; };
  PenaltyArgs<T> a{};
  a.rows = edit_rows<T>(t.logits);
  a.pre = penalty_ids(t.pre_ids), a.prompt = penalty_ids(t.prompt_ids);
  a.bad = penalty_ids(t.bad_tokens);
  a.prompt_len = t.prompt_len.data<int64_t>(), a.bad_len = t.bad_tokens_len.data<int64_t>();
  a.cur_len = t.cur_len.data<int64_t>(), a.min_len = t.min_len.data<int64_t>();
  a.alpha = score(t.penalty_scores), a.beta = score(t.frequency_scores);
  a.gamma = score(t.presence_scores), a.temperature = t.temperatures.data<float>();
  a.eos = t.eos_token_id.data<int64_t>(), a.num_eos = t.eos_token_id.numel();
  a.low = is<f16>(t.logits) ? -1e4f : -1e10f, a.masked = -1e10f;
  return a;
}

void get_token_penalty_multi_scores(Tensor pre_ids, Tensor prompt_ids, Tensor prompt_len,
                                    Tensor logits, Tensor penalty_scores, Tensor frequency_scores,
                                    Tensor presence_scores, Tensor temperatures, Tensor bad_tokens,
                                    Tensor bad_tokens_len, Tensor cur_len, Tensor min_len,
                                    Tensor eos_token_id) {
  const char* op = kPenaltyOp;
  const PenaltyTensors t{pre_ids,        prompt_ids,       prompt_len,      logits,
                         penalty_scores, frequency_scores, presence_scores, temperatures,
                         bad_tokens,     bad_tokens_len,   cur_len,         min_len,
                         eos_token_id};
  dispatch_float(op, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    check_penalty(op, t);
    same_device(op, logits,
                {pre_ids, prompt_ids, prompt_len, penalty_scores, frequency_scores, presence_scores,
                 temperatures, bad_tokens, bad_tokens_len, cur_len, min_len, eos_token_id});
    const PenaltyArgs<T> a = penalty_args<T>(t);
    run(launch_on(op, logits), get_token_penalty_rows<T>, edit_grid(a.rows, logits.size(0)),
        dim3(kEditThreads), 0, a);
  });
}
FD_EXPORT(get_token_penalty_multi_scores)

}  // namespace fd
#endif

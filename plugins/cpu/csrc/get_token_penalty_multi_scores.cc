#include <vector>

#include "fd/checks/logits.h"
#include "fd/parallel.h"

namespace fd {
namespace {

constexpr const char* kOp = "get_token_penalty_multi_scores";
constexpr float kMasked = -1e10f;

using Args = PenaltyTensors;

float value(const Tensor& t, int64_t i) {
  if (is<bf16>(t)) return to_float(t.data<bf16>()[i]);
  if (is<f16>(t)) return to_float(t.data<f16>()[i]);
  return t.data<float>()[i];
}

// Occurrences per token id: a table over the vocabulary that is all zero between rows, so that a
// row costs its history and not the vocabulary. One per thread, kept because clearing it costs
// more.
class Counts {
 public:
  static constexpr int32_t kPromptOnly = -1;

  explicit Counts(int64_t vocab) {
    if (table_.size() < static_cast<size_t>(vocab)) table_.resize(static_cast<size_t>(vocab), 0);
    touched_.clear();
  }
  ~Counts() {
    for (int64_t id : touched_) table_[id] = 0;
  }
  void generated(int64_t id) {
    if (table_[id]++ == 0) touched_.push_back(id);
  }
  void prompt(int64_t id) {  // after all generated ones
    if (table_[id] != 0) return;
    table_[id] = kPromptOnly;
    touched_.push_back(id);
  }
  const std::vector<int64_t>& touched() const { return touched_; }
  int32_t operator[](int64_t id) const { return table_[id]; }

 private:
  static thread_local std::vector<int32_t> table_;
  static thread_local std::vector<int64_t> touched_;
};
thread_local std::vector<int32_t> Counts::table_;
thread_local std::vector<int64_t> Counts::touched_;

void count_history(const Args& a, int64_t row, Counts& counts) {
  const int64_t vocab = a.logits.size(1), width = a.pre_ids.size(1);
  const int64_t* pre = a.pre_ids.data<int64_t>() + row * a.pre_ids.stride(0);
  for (int64_t i = 0; i < width; ++i)
    if (pre[i] >= 0 && pre[i] < vocab) counts.generated(pre[i]);
  const int64_t* prompt = a.prompt_ids.data<int64_t>() + row * a.prompt_ids.stride(0);
  const int64_t length = std::min(a.prompt_ids.size(1), a.prompt_len.data<int64_t>()[row]);
  for (int64_t i = 0; i < length; ++i)
    if (prompt[i] >= 0 && prompt[i] < vocab) counts.prompt(prompt[i]);
}

template <typename T>
void mask_eos(const Args& a, int64_t row, T* x) {
  const int64_t current = a.cur_len.data<int64_t>()[row];
  if (current < 0 || current >= a.min_len.data<int64_t>()[row]) return;
  const float masked = is<f16>(a.logits) ? -1e4f : kMasked;
  for (int64_t i = 0; i < a.eos_token_id.numel(); ++i) {
    const int64_t id = a.eos_token_id.data<int64_t>()[i];
    if (id >= 0 && id < a.logits.size(1)) x[id] = from_float<T>(masked);
  }
}

template <typename T>
T penalised(const Args& a, int64_t row, T logit, int32_t count) {
  const float alpha = value(a.penalty_scores, row);
  float x = to_float(logit);
  x = x < 0 ? x * alpha : x / alpha;
  if (count > 0) x = x - count * value(a.frequency_scores, row) - value(a.presence_scores, row);
  return from_float<T>(x / a.temperatures.data<float>()[row]);
}

template <typename T>
void divide(T* x, int64_t vocab, float temperature) {
  if (temperature == 1.0f) return;
  int64_t i = 0;
  for (; i + kLanes <= vocab; i += kLanes) store16(x + i, load16(x + i) / temperature);
  for (; i < vocab; ++i) x[i] = from_float<T>(to_float(x[i]) / temperature);
}

template <typename T>
void mask_bad_tokens(const Args& a, int64_t row, T* x) {
  const int64_t width = a.bad_tokens.size(1);
  const int64_t count = std::min(width, a.bad_tokens_len.data<int64_t>()[row]);
  const int64_t* bad = a.bad_tokens.data<int64_t>() + row * a.bad_tokens.stride(0);
  for (int64_t i = 0; i < count; ++i)
    if (bad[i] >= 0 && bad[i] < a.logits.size(1)) x[bad[i]] = from_float<T>(kMasked);
}

template <typename T>
void process_row(const Args& a, int64_t row) {
  const int64_t vocab = a.logits.size(1);
  T* x = a.logits.data<T>() + row * a.logits.stride(0);
  mask_eos(a, row, x);
  Counts counts(vocab);
  if (a.cur_len.data<int64_t>()[row] >= 0) count_history(a, row, counts);
  std::vector<T> changed;
  changed.reserve(counts.touched().size());
  for (int64_t id : counts.touched()) changed.push_back(penalised(a, row, x[id], counts[id]));
  divide(x, vocab, a.temperatures.data<float>()[row]);
  for (size_t i = 0; i < changed.size(); ++i) x[counts.touched()[i]] = changed[i];
  mask_bad_tokens(a, row, x);
}

void check_values(const Args& a) {
  for (int64_t r = 0; r < a.logits.size(0); ++r) {
    const float t = a.temperatures.data<float>()[r], alpha = value(a.penalty_scores, r);
    if (!(t > 0)) fail("ValueError", kOp, ".temperatures: want > 0, have ", t, " in row ", r);
    if (!(alpha > 0))
      fail("ValueError", kOp, ".penalty_scores: want > 0, have ", alpha, " in row ", r);
  }
}

}  // namespace

void get_token_penalty_multi_scores(Tensor pre_ids, Tensor prompt_ids, Tensor prompt_len,
                                    Tensor logits, Tensor penalty_scores, Tensor frequency_scores,
                                    Tensor presence_scores, Tensor temperatures, Tensor bad_tokens,
                                    Tensor bad_tokens_len, Tensor cur_len, Tensor min_len,
                                    Tensor eos_token_id) {
  const Args a{pre_ids,          prompt_ids,      prompt_len,   logits,     penalty_scores,
               frequency_scores, presence_scores, temperatures, bad_tokens, bad_tokens_len,
               cur_len,          min_len,         eos_token_id};
  dispatch_float(kOp, "logits", logits, [&](auto tag) {
    check_penalty(kOp, a);
    check_values(a);
    parallel_for(a.logits.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) process_row<decltype(tag)>(a, r);
    });
  });
}

FD_EXPORT(get_token_penalty_multi_scores)

}  // namespace fd

#include <cmath>
#include <vector>

#include "fd/checks/logits.h"

namespace fd {
namespace {

constexpr const char* kOp = "apply_bad_words";
constexpr float kMasked = -1e10f;

struct Words {
  const int64_t* ids;      // [num, width]
  const int32_t* lengths;  // [num]
  int64_t num, width;
};

int64_t history_length(const int64_t* history, int64_t width) {
  int64_t n = 0;
  while (n < width && history[n] >= 0) ++n;
  return n;
}

bool armed(const int64_t* word, int64_t length, const int64_t* history, int64_t n) {
  if (n < length - 1) return false;
  for (int64_t i = 0; i < length - 1; ++i)
    if (history[n - (length - 1) + i] != word[i]) return false;
  return true;
}

// Ids to mask: the last token of every armed word.
void collect(const Words& w, const int64_t* history, int64_t n, int64_t vocab,
             std::vector<int64_t>& banned) {
  banned.clear();
  for (int64_t i = 0; i < w.num; ++i) {
    const int64_t length = w.lengths[i], *word = w.ids + i * w.width;
    if (length <= 0 || length > w.width || !armed(word, length, history, n)) continue;
    const int64_t id = word[length - 1];
    if (id >= 0 && id < vocab) banned.push_back(id);
  }
}

template <typename T>
bool any_choice(const T* x, int64_t vocab) {
  for (int64_t i = 0; i < vocab; ++i) {
    const float v = to_float(x[i]);
    if (v > kMasked * 0.5f && std::isfinite(v)) return true;
  }
  return false;
}

template <typename T>
void mask_row(T* x, int64_t vocab, const std::vector<int64_t>& banned, const Tensor& eos) {
  const int64_t* ids = eos.data<int64_t>();
  const auto inside = [=](int64_t id) { return id >= 0 && id < vocab; };
  std::vector<T> kept(static_cast<size_t>(eos.numel()));
  for (size_t i = 0; i < kept.size(); ++i)
    if (inside(ids[i])) kept[i] = x[ids[i]];
  for (int64_t id : banned) x[id] = from_float<T>(kMasked);
  if (any_choice(x, vocab)) return;
  for (size_t i = 0; i < kept.size(); ++i)
    if (inside(ids[i])) x[ids[i]] = kept[i];
}

}  // namespace

void apply_bad_words(Tensor logits, Tensor history, Tensor bad_words, Tensor bad_words_len,
                     Tensor eos_token_id) {
  check_bad_words(kOp, logits, history, bad_words, bad_words_len, eos_token_id);
  const int64_t n = logits.size(0), vocab = logits.size(1);
  const int64_t num = bad_words.size(1), width = bad_words.size(2);
  dispatch_float(kOp, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    std::vector<int64_t> banned;
    for (int64_t r = 0; r < n; ++r) {
      const int64_t* h = history.data<int64_t>() + r * history.stride(0);
      const Words words{bad_words.data<int64_t>() + r * num * width,
                        bad_words_len.data<int32_t>() + r * num, num, width};
      collect(words, h, history_length(h, history.size(1)), vocab, banned);
      if (!banned.empty())
        mask_row(logits.data<T>() + r * logits.stride(0), vocab, banned, eos_token_id);
    }
  });
}

FD_EXPORT(apply_bad_words)

}  // namespace fd

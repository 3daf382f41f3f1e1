#include <vector>

#include "fd/checks/sampling.h"
#include "fd/softmax.h"

namespace fd {
namespace {

constexpr const char* kOp = "top_logprobs";
constexpr int64_t kBlock = 256;

struct Entry {
  float value;
  int64_t id;
};

bool before(const Entry& a, const Entry& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

float number(float x) { return x > -kInf ? x : -kInf; }

struct Row {
  const float* x;
  int64_t width;
  float max, log_sum;

  // log softmax; entries equal to an infinite maximum share the row.
  float logprob(float v) const {
    const float difference = v == max ? 0.0f : v - max;
    return std::max(difference - log_sum, std::numeric_limits<float>::lowest());
  }
  int64_t rank(float v) const {
    if (v == -kInf) return width;
    int64_t n = 0;
    for (int64_t i = 0; i < width; ++i) n += x[i] >= v;
    return n;
  }
};

Row make_row(const float* x, int64_t width) {
  const float max = max_of(x, 0, width);
  double sum = 0;
  if (std::isfinite(max)) {
    for (int64_t begin = 0; begin < width; begin += kSegment)
      sum += exp_sum(x, max, 1.0f, begin, std::min(width, begin + kSegment), nullptr);
  } else {
    for (int64_t i = 0; i < width; ++i) sum += number(x[i]) == max;
  }
  return {x, width, max, static_cast<float>(std::log(sum))};
}

std::vector<float> block_maxima(const Row& row) {
  std::vector<float> maxima;
  for (int64_t b = 0; b < row.width; b += kBlock)
    maxima.push_back(max_of(row.x, b, std::min(row.width, b + kBlock)));
  return maxima;
}

// A value that at least k entries reach: the k-th largest maximum of the blocks.
float floor_of(std::vector<float> maxima, int64_t k) {
  if (k > static_cast<int64_t>(maxima.size())) return -kInf;
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(),
                   [](float a, float b) { return a > b; });
  return maxima[static_cast<size_t>(k - 1)];
}

std::vector<Entry> candidates(const Row& row, int64_t k) {
  const std::vector<float> maxima = block_maxima(row);
  const float floor = floor_of(maxima, k);
  std::vector<Entry> found;
  for (size_t b = 0; b < maxima.size(); ++b) {
    const int64_t begin = static_cast<int64_t>(b) * kBlock;
    if (!(maxima[b] >= floor)) continue;
    for (int64_t i = begin; i < std::min(row.width, begin + kBlock); ++i)
      if (number(row.x[i]) >= floor) found.push_back({number(row.x[i]), i});
  }
  return found;
}

void top(const Row& row, int64_t k, int64_t* ids, float* logprobs) {
  if (k == 0) return;
  std::vector<Entry> found = candidates(row, k);
  std::partial_sort(found.begin(), found.begin() + k, found.end(), before);
  for (int64_t j = 0; j < k; ++j) {
    ids[j] = found[static_cast<size_t>(j)].id;
    logprobs[j] = row.logprob(found[static_cast<size_t>(j)].value);
  }
}

void check_ids(Tensor token_ids, int64_t n, int64_t width) {
  for (int64_t r = 0; r < n; ++r) {
    const int64_t id = token_ids.data<int64_t>()[r];
    if (id < 0 || id >= width)
      fail("ValueError", kOp, ".token_ids: want ids in [0, ", width, "), have ", id, " in row ", r);
  }
}

}  // namespace

void top_logprobs(Tensor logits, Tensor token_ids, int64_t k, Tensor token_logprob, Tensor rank,
                  Tensor ids, Tensor logprobs) {
  check_top_logprobs(kOp, logits, token_ids, k, token_logprob, rank, ids, logprobs);
  const int64_t n = logits.size(0), width = logits.size(1), step = logits.stride(0);
  check_ids(token_ids, n, width);
  const float* x = logits.data<float>();
  const int64_t* token = token_ids.data<int64_t>();
  float *own = token_logprob.data<float>(), *lp = logprobs.data<float>();
  int64_t *ranks = rank.data<int64_t>(), *top_ids = ids.data<int64_t>();
  parallel_for(n, 1, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Row row = make_row(x + r * step, width);
      const float v = number(row.x[token[r]]);
      own[r] = row.logprob(v);
      ranks[r] = row.rank(v);
      top(row, k, top_ids + r * k, lp + r * k);
    }
  });
}

FD_EXPORT(top_logprobs)

}  // namespace fd

#include "fd/edit_rows.cuh"
#include "fd/slots.cuh"

namespace fd {

constexpr float kBadWordValue = -1e10f;

struct BadWords {
  const int64_t* history;  // [n, width]
  int64_t step, width;
  const int64_t* words;  // [n, num, length]
  const int32_t* sizes;  // [n, num]
  int64_t num, length, vocab;
  Ids eos;

  // Tokens of a row's history: those before the first negative one. By every thread of the block.
  __device__ int64_t past(int64_t row, int* first) const {
    if (threadIdx.x == 0) *first = static_cast<int>(width);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < width; i += kEditThreads)
      if (history[row * step + i] < 0) {
        atomicMin(first, static_cast<int>(i));
        break;
      }
    __syncthreads();
    return *first;
  }

  // The token that would complete word `i`, -1 if none would.
  __device__ int64_t banned(int64_t row, int64_t i, int64_t past) const {
    const int64_t size = sizes[row * num + i], *word = words + (row * num + i) * length;
    if (size <= 0 || size > length || past < size - 1) return -1;
    const int64_t* tail = history + row * step + past - (size - 1);
    for (int64_t j = 0; j < size - 1; ++j)
      if (tail[j] != word[j]) return -1;
    const int64_t id = word[size - 1];
    return id >= 0 && id < vocab ? id : -1;
  }
};

template <typename T>
__device__ __forceinline__ bool bad_words_choice(T x) {
  const float v = to_float(x);
  return v > kBadWordValue * 0.5f && v < INFINITY;
}

// Whether a token that is no banned end has a logit worth choosing, once other words are masked.
template <typename T>
__device__ bool bad_words_any_choice(const T* x, const BadWords& a, int64_t row, int64_t past) {
  for (int64_t first = 0; first < a.vocab; first += kEditThreads) {
    const int64_t id = first + threadIdx.x;
    bool choice = id < a.vocab && bad_words_choice(x[id]);
    if (choice && a.eos.has(id))
      for (int64_t i = 0; choice && i < a.num; ++i) choice = a.banned(row, i, past) != id;
    if (__syncthreads_or(choice)) return true;
  }
  return false;
}

// One block a row. Words that end in an end of text are masked last, and only if a choice remains:
// otherwise those logits would keep their values.
template <typename T>
__global__ void __launch_bounds__(kEditThreads) apply_bad_words_rows(EditRows<T> rows, BadWords a) {
  __shared__ int first;
  const int64_t row = blockIdx.x, past = a.past(row, &first);
  T* x = rows.at(row);
  bool ends = false;
  for (int64_t i = threadIdx.x; i < a.num; i += kEditThreads) {
    const int64_t id = a.banned(row, i, past);
    const bool end = id >= 0 && a.eos.has(id);
    ends |= end;
    if (id >= 0 && !end) x[id] = from_float<T>(kBadWordValue);
  }
  if (!__syncthreads_or(ends) || !bad_words_any_choice(x, a, row, past)) return;
  for (int64_t i = threadIdx.x; i < a.num; i += kEditThreads) {
    const int64_t id = a.banned(row, i, past);
    if (id >= 0 && a.eos.has(id)) x[id] = from_float<T>(kBadWordValue);
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/edit_rows.h"

namespace fd {

void apply_bad_words(Tensor logits, Tensor history, Tensor bad_words, Tensor bad_words_len,
                     Tensor eos_token_id) {
  const char* op = "apply_bad_words";
  check_bad_words(op, logits, history, bad_words, bad_words_len, eos_token_id);
  const int64_t n = logits.size(0), vocab = logits.size(1);
  const BadWords a{history.data<int64_t>(),
                   history.stride(0),
                   history.size(1),
                   bad_words.data<int64_t>(),
                   bad_words_len.data<int32_t>(),
                   bad_words.size(1),
                   bad_words.size(2),
                   vocab,
                   {eos_token_id.data<int64_t>(), eos_token_id.numel()}};
  same_device(op, logits, {history, bad_words, bad_words_len, eos_token_id});
  dispatch_float(op, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    run(launch_on(op, logits), apply_bad_words_rows<T>, dim3(static_cast<unsigned>(n)),
        dim3(kEditThreads), 0, edit_rows<T>(logits), a);
  });
}
FD_EXPORT(apply_bad_words)

}  // namespace fd
#endif

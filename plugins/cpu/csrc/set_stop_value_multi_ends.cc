#include <algorithm>

#include "fd/checks/stop.h"

namespace fd {
namespace {

constexpr const char* kOp = "set_stop_value_multi_ends";

struct Args : StopTensors {
  bool ends_count, prefill_stop;
};

bool contains(const int64_t* ids, int64_t n, int64_t id) {
  return std::find(ids, ids + n, id) != ids + n;
}

// Does sequence `seq` of `length` tokens end at history[step - 1]?
bool ends_with(const int64_t* history, int64_t width, int64_t step, const int64_t* seq,
               int64_t length) {
  if (step < length || step > width) return false;
  return std::equal(seq, seq + length, history + (step - length));
}

struct Slot {
  const Args& a;
  int64_t b;
  int64_t& token = a.topk_ids.data<int64_t>()[b];
  int64_t& next = a.next_tokens.data<int64_t>()[b];
  bool& stopped = a.stop_flags.data<bool>()[b];
  int64_t step = a.step_idx.data<int64_t>()[b];
  bool can_stop = step >= a.min_tokens.data<int64_t>()[b];

  void finish() {
    stopped = true;
    token = next = a.end_ids.data<int64_t>()[0];
  }

  void base() {
    const bool idle = a.seq_lens.data<int32_t>()[b] == 0;
    if (a.prefill_stop) {
      stopped = true;
      if (idle) token = -1;
      next = token;
    } else if (!stopped) {
      next = token;
    } else if (idle) {
      token = -1;
    } else {
      finish();
    }
  }

  bool hits_token() const {
    const int64_t width = a.stop_token_ids.size(1);
    const int64_t n = std::min<int64_t>(width, a.stop_token_ids_len.data<int32_t>()[b]);
    return n > 0 && contains(a.stop_token_ids.data<int64_t>() + b * width, n, token);
  }

  bool hits_sequence() const {
    const int64_t num = a.stop_seqs.size(1), width = a.stop_seqs.size(2);
    const int64_t* history = a.pre_ids.data<int64_t>() + b * a.pre_ids.stride(0);
    for (int64_t i = 0; i < num; ++i) {
      const int64_t length = a.stop_seqs_len.data<int32_t>()[b * num + i];
      const int64_t* seq = a.stop_seqs.data<int64_t>() + (b * num + i) * width;
      if (length > 0 && length <= width && ends_with(history, a.pre_ids.size(1), step, seq, length))
        return true;
    }
    return false;
  }

  void run() {
    base();
    if (!stopped && (step >= a.max_tokens.data<int64_t>()[b] || (can_stop && hits_token())))
      finish();
    if (a.ends_count && can_stop && contains(a.end_ids.data<int64_t>(), a.end_ids.numel(), token))
      finish();
    if (can_stop && !stopped && hits_sequence()) finish();
  }
};

}  // namespace

void set_stop_value_multi_ends(Tensor topk_ids, Tensor stop_flags, Tensor seq_lens, Tensor end_ids,
                               Tensor next_tokens, Tensor pre_ids, Tensor step_idx,
                               Tensor stop_seqs, Tensor stop_seqs_len, Tensor stop_token_ids,
                               Tensor stop_token_ids_len, Tensor min_tokens, Tensor max_tokens,
                               bool beam_search) {
  const Args a{{topk_ids, stop_flags, seq_lens, end_ids, next_tokens, pre_ids, step_idx, stop_seqs,
                stop_seqs_len, stop_token_ids, stop_token_ids_len, min_tokens, max_tokens},
               !beam_search,
               prefill_one_step_stop()};
  check_stop(kOp, a);
  for (int64_t b = 0; b < topk_ids.numel(); ++b) Slot{a, b}.run();
}

FD_EXPORT(set_stop_value_multi_ends)

}  // namespace fd

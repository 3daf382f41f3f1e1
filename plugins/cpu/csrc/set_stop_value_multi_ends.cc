#include <algorithm>
#include <cstdlib>

#include "fd/check.h"

namespace fd {
namespace {

constexpr const char* kOp = "set_stop_value_multi_ends";

struct Args {
  Tensor topk_ids, stop_flags, seq_lens, end_ids, next_tokens, pre_ids, step_idx, stop_seqs;
  Tensor stop_seqs_len, stop_token_ids, stop_token_ids_len, min_tokens, max_tokens;
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

void check_slots(const char* arg, Tensor t, int64_t slots) {
  Check{kOp, arg, t}.slots(slots).dtype<int64_t>("int64").contiguous();
}

void check_lists(const Args& a, int64_t slots) {
  Check{kOp, "pre_ids", a.pre_ids}.rank(2).dim(0, slots).dtype<int64_t>("int64").inner_contiguous();
  Check{kOp, "stop_seqs", a.stop_seqs}.rank(3).dim(0, slots).dtype<int64_t>("int64").contiguous();
  Check{kOp, "stop_seqs_len", a.stop_seqs_len}.rank(2).dim(0, slots).dim(1, a.stop_seqs.size(1));
  Check{kOp, "stop_seqs_len", a.stop_seqs_len}.dtype<int32_t>("int32").contiguous();
  Check{kOp, "stop_token_ids", a.stop_token_ids}.rank(2).dim(0, slots).dtype<int64_t>("int64");
  Check{kOp, "stop_token_ids", a.stop_token_ids}.contiguous();
  Check{kOp, "stop_token_ids_len", a.stop_token_ids_len}.slots(slots).dtype<int32_t>("int32");
  Check{kOp, "stop_token_ids_len", a.stop_token_ids_len}.contiguous();
}

void check(const Args& a) {
  Check{kOp, "stop_flags", a.stop_flags}.dtype<bool>("bool").contiguous();
  const int64_t slots = Check{kOp, "stop_flags", a.stop_flags}.slot_count();
  Check{kOp, "topk_ids", a.topk_ids}.dtype<int64_t>("int64").contiguous().slot_count();
  if (a.topk_ids.numel() > slots)
    fail("ValueError", kOp, ".topk_ids: want at most ", slots, " rows (slots), have ",
         shape_text(a.topk_ids));
  Check{kOp, "seq_lens", a.seq_lens}.dtype<int32_t>("int32").contiguous().slot_count();
  if (a.seq_lens.numel() < a.topk_ids.numel())
    fail("ValueError", kOp, ".seq_lens: want at least ", a.topk_ids.numel(), " elements, have ",
         shape_text(a.seq_lens));
  Check{kOp, "end_ids", a.end_ids}.dtype<int64_t>("int64").contiguous();
  if (a.end_ids.numel() == 0) fail("ValueError", kOp, ".end_ids: want at least one id, have none");
  check_slots("next_tokens", a.next_tokens, slots);
  check_slots("step_idx", a.step_idx, slots);
  check_slots("min_tokens", a.min_tokens, slots);
  check_slots("max_tokens", a.max_tokens, slots);
  check_lists(a, slots);
}

bool prefill_one_step_stop() {
  const char* text = std::getenv("PREFILL_NODE_ONE_STEP_STOP");
  return text != nullptr && text[0] == '1';
}

}  // namespace

void set_stop_value_multi_ends(Tensor topk_ids, Tensor stop_flags, Tensor seq_lens, Tensor end_ids,
                               Tensor next_tokens, Tensor pre_ids, Tensor step_idx,
                               Tensor stop_seqs, Tensor stop_seqs_len, Tensor stop_token_ids,
                               Tensor stop_token_ids_len, Tensor min_tokens, Tensor max_tokens,
                               bool beam_search) {
  const Args a{topk_ids,       stop_flags,         seq_lens,
               end_ids,        next_tokens,        pre_ids,
               step_idx,       stop_seqs,          stop_seqs_len,
               stop_token_ids, stop_token_ids_len, min_tokens,
               max_tokens,     !beam_search,       prefill_one_step_stop()};
  check(a);
  for (int64_t b = 0; b < topk_ids.numel(); ++b) Slot{a, b}.run();
}

FD_EXPORT(set_stop_value_multi_ends)

}  // namespace fd

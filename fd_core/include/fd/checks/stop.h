// The tensors of set_stop_value_multi_ends.
#pragma once
#include <cstdlib>

#include "fd/checks/vectors.h"

namespace fd {

struct StopTensors {
  Tensor topk_ids, stop_flags, seq_lens, end_ids, next_tokens, pre_ids, step_idx, stop_seqs;
  Tensor stop_seqs_len, stop_token_ids, stop_token_ids_len, min_tokens, max_tokens;
};

inline void check_stop_lists(const char* op, const StopTensors& a, int64_t slots) {
  check_id_rows(op, "pre_ids", a.pre_ids, slots);
  Check{op, "stop_seqs", a.stop_seqs}.rank(3).dim(0, slots).dtype<int64_t>("int64").contiguous();
  Check{op, "stop_seqs_len", a.stop_seqs_len}.rank(2).dim(0, slots).dim(1, a.stop_seqs.size(1));
  Check{op, "stop_seqs_len", a.stop_seqs_len}.dtype<int32_t>("int32").contiguous();
  Check{op, "stop_token_ids", a.stop_token_ids}.rank(2).dim(0, slots).dtype<int64_t>("int64");
  Check{op, "stop_token_ids", a.stop_token_ids}.contiguous();
  per_slot<int32_t>(op, "stop_token_ids_len", a.stop_token_ids_len, slots, "int32");
}

inline void check_stop(const char* op, const StopTensors& a) {
  const int64_t slots = count_slots<bool>(op, "stop_flags", a.stop_flags, "bool");
  count_slots<int64_t>(op, "topk_ids", a.topk_ids, "int64");
  check_rows_in_slots(op, "topk_ids", a.topk_ids, slots);
  count_slots<int32_t>(op, "seq_lens", a.seq_lens, "int32");
  if (a.seq_lens.numel() < a.topk_ids.numel())
    fail("ValueError", op, ".seq_lens: want at least ", a.topk_ids.numel(), " elements, have ",
         shape_text(a.seq_lens));
  check_list(op, "end_ids", a.end_ids);
  check_not_empty(op, "end_ids", a.end_ids);
  per_slot<int64_t>(op, "next_tokens", a.next_tokens, slots, "int64");
  per_slot<int64_t>(op, "step_idx", a.step_idx, slots, "int64");
  per_slot<int64_t>(op, "min_tokens", a.min_tokens, slots, "int64");
  per_slot<int64_t>(op, "max_tokens", a.max_tokens, slots, "int64");
  check_stop_lists(op, a, slots);
}

// Whether every slot ends after its first token (a prefill-only server).
inline bool prefill_one_step_stop() {
  const char* text = std::getenv("PREFILL_NODE_ONE_STEP_STOP");
  return text != nullptr && text[0] == '1';
}

}  // namespace fd

#include "fd/thinking.h"

namespace fd {

void limit_thinking_content_length_v1(Tensor next_tokens, Tensor max_think_lens, Tensor step_idx,
                                      Tensor limit_think_status, Tensor stop_flags,
                                      Tensor eos_token_ids, int64_t think_end_id) {
  const char* op = "limit_thinking_content_length_v1";
  const ThinkingSlots s = check_thinking(op, next_tokens, max_think_lens, step_idx,
                                         "limit_think_status", limit_think_status, stop_flags);
  const Ids eos = id_list(op, "eos_token_ids", eos_token_ids);
  for (int64_t b = 0; b < s.n; ++b) {
    if (s.limits[b] < 0 || (s.status[b] == 2 && s.stopped[b])) continue;
    if (s.status[b] < 1) {
      const bool full = s.steps[b] >= s.limits[b], ended = !full && eos.has(s.tokens[b]);
      if (full || ended) s.tokens[b] = think_end_id, s.status[b] = 1;
      if (ended) s.stopped[b] = false;
    }
    if (s.status[b] < 2 && s.tokens[b] == think_end_id) s.status[b] = 2;
  }
}

FD_EXPORT(limit_thinking_content_length_v1)

}  // namespace fd

#include "fd/thinking.h"

namespace fd {

void limit_thinking_content_length_v2(Tensor next_tokens, Tensor max_think_lens, Tensor step_idx,
                                      Tensor limit_think_status, Tensor stop_flags,
                                      int64_t think_end_id, int64_t line_break_id) {
  const char* op = "limit_thinking_content_length_v2";
  const ThinkingSlots s = check_thinking(op, next_tokens, max_think_lens, step_idx,
                                         "limit_think_status", limit_think_status, stop_flags);
  const int64_t forced[] = {line_break_id, think_end_id, line_break_id, line_break_id};
  for (int64_t b = 0; b < s.n; ++b) {
    if (s.limits[b] < 0 || (s.status[b] == 3 && s.stopped[b])) continue;
    const int64_t past = s.steps[b] - s.limits[b];
    if (s.status[b] <= 1 && past >= 0 && past < 4)
      s.tokens[b] = forced[past], s.status[b] = past < 3 ? 1 : 2;
    if (s.status[b] == 2 || (s.status[b] == 0 && s.tokens[b] == think_end_id)) s.status[b] = 3;
  }
}

FD_EXPORT(limit_thinking_content_length_v2)

}  // namespace fd

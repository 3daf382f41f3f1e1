#include "fd/thinking.h"

namespace fd {

void limit_thinking_content_length_v2(Tensor next_tokens, Tensor max_think_lens, Tensor step_idx,
                                      Tensor limit_think_status, Tensor stop_flags,
                                      int64_t think_end_id, int64_t line_break_id) {
  const char* op = "limit_thinking_content_length_v2";
  const Check tokens{op, "next_tokens", next_tokens};
  const int64_t n = tokens.dtype<int64_t>("int64").contiguous().slot_count();
  const int32_t* limit = slots<int32_t>(op, "max_think_lens", max_think_lens, n, "int32");
  const int64_t* step = slots<int64_t>(op, "step_idx", step_idx, n, "int64");
  int32_t* status = slots<int32_t>(op, "limit_think_status", limit_think_status, n, "int32");
  const bool* stopped = slots<bool>(op, "stop_flags", stop_flags, n, "bool");
  const int64_t forced[] = {line_break_id, think_end_id, line_break_id, line_break_id};
  int64_t* token = next_tokens.data<int64_t>();
  for (int64_t b = 0; b < n; ++b) {
    if (limit[b] < 0 || (status[b] == 3 && stopped[b])) continue;
    const int64_t past = step[b] - limit[b];
    if (status[b] <= 1 && past >= 0 && past < 4)
      token[b] = forced[past], status[b] = past < 3 ? 1 : 2;
    if (status[b] == 2 || (status[b] == 0 && token[b] == think_end_id)) status[b] = 3;
  }
}

FD_EXPORT(limit_thinking_content_length_v2)

}  // namespace fd

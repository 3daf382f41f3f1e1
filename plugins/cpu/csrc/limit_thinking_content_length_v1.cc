#include "fd/thinking.h"

namespace fd {

void limit_thinking_content_length_v1(Tensor next_tokens, Tensor max_think_lens, Tensor step_idx,
                                      Tensor limit_think_status, Tensor stop_flags,
                                      Tensor eos_token_ids, int64_t think_end_id) {
  const char* op = "limit_thinking_content_length_v1";
  const Check tokens{op, "next_tokens", next_tokens};
  const int64_t n = tokens.dtype<int64_t>("int64").contiguous().slot_count();
  const int32_t* limit = slots<int32_t>(op, "max_think_lens", max_think_lens, n, "int32");
  const int64_t* step = slots<int64_t>(op, "step_idx", step_idx, n, "int64");
  int32_t* status = slots<int32_t>(op, "limit_think_status", limit_think_status, n, "int32");
  bool* stopped = slots<bool>(op, "stop_flags", stop_flags, n, "bool");
  const Ids eos = id_list(op, "eos_token_ids", eos_token_ids);
  int64_t* token = next_tokens.data<int64_t>();
  for (int64_t b = 0; b < n; ++b) {
    if (limit[b] < 0 || (status[b] == 2 && stopped[b])) continue;
    if (status[b] < 1) {
      const bool full = step[b] >= limit[b], ended = !full && eos.has(token[b]);
      if (full || ended) token[b] = think_end_id, status[b] = 1;
      if (ended) stopped[b] = false;
    }
    if (status[b] < 2 && token[b] == think_end_id) status[b] = 2;
  }
}

FD_EXPORT(limit_thinking_content_length_v1)

}  // namespace fd

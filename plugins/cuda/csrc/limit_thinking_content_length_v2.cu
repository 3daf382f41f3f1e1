#include "fd/slots.cuh"

namespace fd {

struct LimitThinkingV2 {
  int64_t* tokens;
  const int32_t* limits;
  const int64_t* steps;
  int32_t* status;
  const bool* stopped;
  int64_t think_end, line_break, n;
};

__global__ void limit_thinking_content_length_v2_slots(LimitThinkingV2 a) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b >= a.n || a.limits[b] < 0 || (a.status[b] == 3 && a.stopped[b])) return;
  const int64_t past = a.steps[b] - a.limits[b];
  if (a.status[b] <= 1 && past >= 0 && past < 4) {
    a.tokens[b] = past == 1 ? a.think_end : a.line_break;
    a.status[b] = past < 3 ? 1 : 2;
  }
  if (a.status[b] == 2 || (a.status[b] == 0 && a.tokens[b] == a.think_end)) a.status[b] = 3;
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/thinking.h"
#include "fd/slots.h"

namespace fd {

void limit_thinking_content_length_v2(Tensor next_tokens, Tensor max_think_lens, Tensor step_idx,
                                      Tensor limit_think_status, Tensor stop_flags,
                                      int64_t think_end_id, int64_t line_break_id) {
  const char* op = "limit_thinking_content_length_v2";
  const ThinkingSlots s = check_thinking(op, next_tokens, max_think_lens, step_idx,
                                         "limit_think_status", limit_think_status, stop_flags);
  const LimitThinkingV2 job{s.tokens,  s.limits,     s.steps,       s.status,
                            s.stopped, think_end_id, line_break_id, s.n};
  same_device(op, next_tokens, {max_think_lens, step_idx, limit_think_status, stop_flags});
  run(launch_on(op, next_tokens), limit_thinking_content_length_v2_slots, slot_grid(s.n),
      dim3(kSlotThreads), 0, job);
}
FD_EXPORT(limit_thinking_content_length_v2)

}  // namespace fd
#endif

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
#include "fd/slots.h"

namespace fd {

void limit_thinking_content_length_v2(Tensor next_tokens, Tensor max_think_lens, Tensor step_idx,
                                      Tensor limit_think_status, Tensor stop_flags,
                                      int64_t think_end_id, int64_t line_break_id) {
  const char* op = "limit_thinking_content_length_v2";
  const int64_t n = count_slots(op, "next_tokens", next_tokens);
  const LimitThinkingV2 job{
      next_tokens.data<int64_t>(),
      slots<int32_t>(op, "max_think_lens", max_think_lens, n, "int32"),
      slots<int64_t>(op, "step_idx", step_idx, n, "int64"),
      slots<int32_t>(op, "limit_think_status", limit_think_status, n, "int32"),
      slots<bool>(op, "stop_flags", stop_flags, n, "bool"),
      think_end_id,
      line_break_id,
      n};
  same_device(op, next_tokens, {max_think_lens, step_idx, limit_think_status, stop_flags});
  run(launch_on(op, next_tokens), limit_thinking_content_length_v2_slots, slot_grid(n),
      dim3(kSlotThreads), 0, job);
}
FD_EXPORT(limit_thinking_content_length_v2)

}  // namespace fd
#endif

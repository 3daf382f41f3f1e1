#include "fd/slots.cuh"

namespace fd {

struct LimitThinkingV1 {
  int64_t* tokens;
  const int32_t* limits;
  const int64_t* steps;
  int32_t* status;
  bool* stopped;
  Ids eos;
  int64_t think_end, n;
};

__global__ void limit_thinking_content_length_v1_slots(LimitThinkingV1 a) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b >= a.n || a.limits[b] < 0 || (a.status[b] == 2 && a.stopped[b])) return;
  if (a.status[b] < 1) {
    const bool full = a.steps[b] >= a.limits[b], ended = !full && a.eos.has(a.tokens[b]);
    if (full || ended) a.tokens[b] = a.think_end, a.status[b] = 1;
    if (ended) a.stopped[b] = false;
  }
  if (a.status[b] < 2 && a.tokens[b] == a.think_end) a.status[b] = 2;
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/thinking.h"
#include "fd/slots.h"

namespace fd {

void limit_thinking_content_length_v1(Tensor next_tokens, Tensor max_think_lens, Tensor step_idx,
                                      Tensor limit_think_status, Tensor stop_flags,
                                      Tensor eos_token_ids, int64_t think_end_id) {
  const char* op = "limit_thinking_content_length_v1";
  const ThinkingSlots s = check_thinking(op, next_tokens, max_think_lens, step_idx,
                                         "limit_think_status", limit_think_status, stop_flags);
  const LimitThinkingV1 job{s.tokens,     s.limits,  s.steps,
                            s.status,     s.stopped, id_list(op, "eos_token_ids", eos_token_ids),
                            think_end_id, s.n};
  same_device(op, next_tokens,
              {max_think_lens, step_idx, limit_think_status, stop_flags, eos_token_ids});
  run(launch_on(op, next_tokens), limit_thinking_content_length_v1_slots, slot_grid(s.n),
      dim3(kSlotThreads), 0, job);
}
FD_EXPORT(limit_thinking_content_length_v1)

}  // namespace fd
#endif

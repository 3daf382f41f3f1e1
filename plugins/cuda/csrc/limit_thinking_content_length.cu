#include "fd/slots.cuh"

namespace fd {

// Status: 0 thinking; 1..I the injected token to come; `done` after them; from `base` on the
// reply's tokens are counted.
struct LimitThinking {
  int64_t* tokens;
  const int32_t* max_think;
  int32_t* max_reply;
  const int64_t* steps;
  int32_t* statuses;
  const bool* stopped;
  Ids eos, inject;
  int64_t think_end, n;
  bool decode_role;
  int32_t done, base;

  __device__ void thinking(int64_t b, int64_t& token, int32_t& status) const {
    const bool injects = inject.count > 0;
    const int32_t limit = max_think[b], first = injects ? 1 : done;
    if (limit > 0 && status == 0 && steps[b] == limit) status = first;
    if (limit == 0 && status == 0) status = first + (decode_role ? 1 : 0);
    if (status == 0 && injects && eos.has(token)) status = 1;
    if (status >= 1 && status <= inject.count) token = inject.ids[status - 1], ++status;
  }

  __device__ void reply(int64_t b, int64_t& token, int32_t& status) const {
    if (status == done) status = base;
    if (status < base) return;
    if (status - base >= max_reply[b])
      token = eos.ids[0], status = base + max_reply[b];
    else
      ++status;
  }

  __device__ void slot(int64_t b) const {
    int64_t token = tokens[b];
    int32_t status = max(statuses[b], 0);
    const int32_t before = status;
    if (status == 0 && token == think_end) {
      status = done;
      if (max_reply[b] >= 0) max_reply[b] += 2;
    }
    if (max_think[b] >= 0 && status < base) thinking(b, token, status);
    const bool just_done = status == done && before != done && before < base;
    if (max_reply[b] >= 0 && !just_done) reply(b, token, status);
    tokens[b] = token, statuses[b] = status;
  }
};

__global__ void limit_thinking_content_length_slots(LimitThinking a) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b < a.n && !a.stopped[b] && (a.max_think[b] >= 0 || a.max_reply[b] >= 0)) a.slot(b);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/thinking.h"
#include "fd/slots.h"

namespace fd {

void limit_thinking_content_length(Tensor next_tokens, Tensor max_think_lens, Tensor max_reply_lens,
                                   Tensor step_idx, Tensor limit_status, Tensor stop_flags,
                                   Tensor eos_token_ids, Tensor inject_token_ids,
                                   int64_t think_end_id, bool splitwise_role_is_decode) {
  const char* op = "limit_thinking_content_length";
  const ThinkingSlots s = check_thinking(op, next_tokens, max_think_lens, step_idx, "limit_status",
                                         limit_status, stop_flags);
  LimitThinking job{};
  job.tokens = s.tokens, job.n = s.n, job.max_think = s.limits, job.steps = s.steps;
  job.statuses = s.status, job.stopped = s.stopped;
  job.max_reply = per_slot<int32_t>(op, "max_reply_lens", max_reply_lens, s.n, "int32");
  job.eos = id_list(op, "eos_token_ids", eos_token_ids);
  job.inject = id_list(op, "inject_token_ids", inject_token_ids);
  job.think_end = think_end_id, job.decode_role = splitwise_role_is_decode;
  job.done = job.inject.count > 0 ? static_cast<int32_t>(job.inject.count) + 1 : 1;
  job.base = job.done + 1;
  check_not_empty(op, "eos_token_ids", eos_token_ids);
  same_device(op, next_tokens,
              {max_think_lens, max_reply_lens, step_idx, limit_status, stop_flags, eos_token_ids,
               inject_token_ids});
  run(launch_on(op, next_tokens), limit_thinking_content_length_slots, slot_grid(s.n),
      dim3(kSlotThreads), 0, job);
}
FD_EXPORT(limit_thinking_content_length)

}  // namespace fd
#endif

#include "fd/thinking.h"

namespace fd {
namespace {

constexpr const char* kOp = "limit_thinking_content_length";

// Status: 0 thinking; 1..I the injected token to come; `done` after them; from `base` on the
// reply's tokens are counted.
struct Limits {
  Ids eos, inject;
  int64_t think_end;
  bool decode_role;
  int32_t done = inject.count > 0 ? static_cast<int32_t>(inject.count) + 1 : 1;
  int32_t base = done + 1;

  void thinking(int32_t max_think, int64_t step, int64_t& token, int32_t& status) const {
    const bool injects = inject.count > 0;
    if (max_think > 0 && status == 0 && step == max_think) status = injects ? 1 : done;
    if (max_think == 0 && status == 0) status = (injects ? 1 : done) + (decode_role ? 1 : 0);
    if (status == 0 && injects && eos.has(token)) status = 1;
    if (status >= 1 && status <= inject.count) token = inject.ids[status - 1], ++status;
  }

  void reply(int32_t max_reply, int64_t& token, int32_t& status) const {
    if (status == done) status = base;
    if (status < base) return;
    if (status - base >= max_reply)
      token = eos.ids[0], status = base + max_reply;
    else
      ++status;
  }

  void step(int32_t max_think, int32_t& max_reply, int64_t step, int64_t& token,
            int32_t& status) const {
    status = std::max(status, 0);
    const int32_t before = status;
    if (status == 0 && token == think_end) {
      status = done;
      if (max_reply >= 0) max_reply += 2;
    }
    if (max_think >= 0 && status < base) thinking(max_think, step, token, status);
    const bool just_done = status == done && before != done && before < base;
    if (max_reply >= 0 && !just_done) reply(max_reply, token, status);
  }
};

}  // namespace

void limit_thinking_content_length(Tensor next_tokens, Tensor max_think_lens, Tensor max_reply_lens,
                                   Tensor step_idx, Tensor limit_status, Tensor stop_flags,
                                   Tensor eos_token_ids, Tensor inject_token_ids,
                                   int64_t think_end_id, bool splitwise_role_is_decode) {
  const ThinkingSlots s = check_thinking(kOp, next_tokens, max_think_lens, step_idx, "limit_status",
                                         limit_status, stop_flags);
  int32_t* max_reply = per_slot<int32_t>(kOp, "max_reply_lens", max_reply_lens, s.n, "int32");
  const Limits limits{id_list(kOp, "eos_token_ids", eos_token_ids),
                      id_list(kOp, "inject_token_ids", inject_token_ids), think_end_id,
                      splitwise_role_is_decode};
  check_not_empty(kOp, "eos_token_ids", eos_token_ids);
  for (int64_t b = 0; b < s.n; ++b)
    if (!s.stopped[b] && (s.limits[b] >= 0 || max_reply[b] >= 0))
      limits.step(s.limits[b], max_reply[b], s.steps[b], s.tokens[b], s.status[b]);
}

FD_EXPORT(limit_thinking_content_length)

}  // namespace fd

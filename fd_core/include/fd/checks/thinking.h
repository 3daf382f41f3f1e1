// The tensors of the ops that limit the length of a reasoning part.
#pragma once
#include "fd/checks/vectors.h"

namespace fd {

struct ThinkingSlots {
  int64_t n;
  int64_t* tokens;
  const int32_t* limits;
  const int64_t* steps;
  int32_t* status;
  bool* stopped;
};

inline ThinkingSlots check_thinking(const char* op, const Tensor& next_tokens,
                                    const Tensor& max_think_lens, const Tensor& step_idx,
                                    const char* status_name, const Tensor& status,
                                    const Tensor& stop_flags) {
  const int64_t n = count_slots<int64_t>(op, "next_tokens", next_tokens, "int64");
  return {n,
          next_tokens.data<int64_t>(),
          per_slot<int32_t>(op, "max_think_lens", max_think_lens, n, "int32"),
          per_slot<int64_t>(op, "step_idx", step_idx, n, "int64"),
          per_slot<int32_t>(op, status_name, status, n, "int32"),
          per_slot<bool>(op, "stop_flags", stop_flags, n, "bool")};
}

}  // namespace fd

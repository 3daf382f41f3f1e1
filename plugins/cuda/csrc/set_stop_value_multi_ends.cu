#include "fd/slots.cuh"

namespace fd {

struct StopArgs {
  int64_t *tokens, *next;
  bool* stopped;
  const int32_t* seq_lens;
  Ids ends;
  const int64_t* pre_ids;  // [slots, pre_width]
  int64_t pre_step, pre_width;
  const int64_t* steps;
  const int64_t* seqs;  // [slots, num, length]
  const int32_t* seq_sizes;
  int64_t num, length;
  const int64_t* listed;  // [slots, listed_width]
  const int32_t* listed_sizes;
  int64_t listed_width;
  const int64_t *min_tokens, *max_tokens;
  bool ends_count, prefill_stop;
  int64_t n;
};

struct StopSlot {
  const StopArgs& a;
  int64_t b, step, token, next;
  bool stopped, can_stop;

  __device__ StopSlot(const StopArgs& args, int64_t slot)
      : a(args),
        b(slot),
        step(args.steps[slot]),
        token(args.tokens[slot]),
        next(args.next[slot]),
        stopped(args.stopped[slot]),
        can_stop(step >= args.min_tokens[slot]) {}

  __device__ void finish() { stopped = true, token = next = a.ends.ids[0]; }

  __device__ void base() {
    const bool idle = a.seq_lens[b] == 0;
    if (a.prefill_stop) {
      stopped = true;
      if (idle) token = -1;
      next = token;
    } else if (!stopped) {
      next = token;
    } else if (idle) {
      token = -1;
    } else {
      finish();
    }
  }

  __device__ bool hits_token() const {
    const int64_t size = min(a.listed_width, static_cast<int64_t>(a.listed_sizes[b]));
    return Ids{a.listed + b * a.listed_width, size}.has(token);
  }

  __device__ bool ends_with(const int64_t* sequence, int64_t size) const {
    if (step < size || step > a.pre_width) return false;
    const int64_t* history = a.pre_ids + b * a.pre_step + (step - size);
    for (int64_t i = 0; i < size; ++i)
      if (history[i] != sequence[i]) return false;
    return true;
  }

  __device__ bool hits_sequence() const {
    for (int64_t i = b * a.num; i < (b + 1) * a.num; ++i) {
      const int64_t size = a.seq_sizes[i];
      if (size > 0 && size <= a.length && ends_with(a.seqs + i * a.length, size)) return true;
    }
    return false;
  }

  __device__ void run() {
    base();
    if (!stopped && (step >= a.max_tokens[b] || (can_stop && hits_token()))) finish();
    if (a.ends_count && can_stop && a.ends.has(token)) finish();
    if (can_stop && !stopped && hits_sequence()) finish();
    a.tokens[b] = token, a.next[b] = next, a.stopped[b] = stopped;
  }
};

__global__ void set_stop_value_multi_ends_slots(StopArgs a) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b < a.n) StopSlot(a, b).run();
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/stop.h"
#include "fd/slots.h"

namespace fd {

constexpr const char* kStopOp = "set_stop_value_multi_ends";

inline StopArgs stop_args(const StopTensors& t, bool ends_count) {
  StopArgs a{};
  a.n = t.topk_ids.numel(), a.tokens = t.topk_ids.data<int64_t>();
  a.next = t.next_tokens.data<int64_t>(), a.stopped = t.stop_flags.data<bool>();
  a.seq_lens = t.seq_lens.data<int32_t>(), a.steps = t.step_idx.data<int64_t>();
  a.ends = {t.end_ids.data<int64_t>(), t.end_ids.numel()};
  a.pre_ids = t.pre_ids.data<int64_t>(), a.pre_step = t.pre_ids.stride(0);
  a.pre_width = t.pre_ids.size(1);
  a.seqs = t.stop_seqs.data<int64_t>(), a.seq_sizes = t.stop_seqs_len.data<int32_t>();
  a.num = t.stop_seqs.size(1), a.length = t.stop_seqs.size(2);
  a.listed = t.stop_token_ids.data<int64_t>(), a.listed_width = t.stop_token_ids.size(1);
  a.listed_sizes = t.stop_token_ids_len.data<int32_t>();
  a.min_tokens = t.min_tokens.data<int64_t>(), a.max_tokens = t.max_tokens.data<int64_t>();
  a.ends_count = ends_count, a.prefill_stop = prefill_one_step_stop();
  return a;
}

void set_stop_value_multi_ends(Tensor topk_ids, Tensor stop_flags, Tensor seq_lens, Tensor end_ids,
                               Tensor next_tokens, Tensor pre_ids, Tensor step_idx,
                               Tensor stop_seqs, Tensor stop_seqs_len, Tensor stop_token_ids,
                               Tensor stop_token_ids_len, Tensor min_tokens, Tensor max_tokens,
                               bool beam_search) {
  const StopTensors t{topk_ids,      stop_flags,     seq_lens,           end_ids,
                      next_tokens,   pre_ids,        step_idx,           stop_seqs,
                      stop_seqs_len, stop_token_ids, stop_token_ids_len, min_tokens,
                      max_tokens};
  check_stop(kStopOp, t);
  same_device(kStopOp, topk_ids,
              {stop_flags, seq_lens, end_ids, next_tokens, pre_ids, step_idx, stop_seqs,
               stop_seqs_len, stop_token_ids, stop_token_ids_len, min_tokens, max_tokens});
  const StopArgs a = stop_args(t, !beam_search);
  run(launch_on(kStopOp, topk_ids), set_stop_value_multi_ends_slots, slot_grid(a.n),
      dim3(kSlotThreads), 0, a);
}
FD_EXPORT(set_stop_value_multi_ends)

}  // namespace fd
#endif

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
#include "fd/slots.h"

namespace fd {

constexpr const char* kStopOp = "set_stop_value_multi_ends";

inline bool prefill_one_step_stop() {
  const char* text = std::getenv("PREFILL_NODE_ONE_STEP_STOP");
  return text != nullptr && text[0] == '1';
}

inline void stop_histories(StopArgs& a, Tensor pre_ids, Tensor stop_seqs, Tensor stop_seqs_len,
                           int64_t count) {
  Check{kStopOp, "pre_ids", pre_ids}.rank(2).dim(0, count).dtype<int64_t>("int64");
  Check{kStopOp, "pre_ids", pre_ids}.inner_contiguous();
  Check{kStopOp, "stop_seqs", stop_seqs}.rank(3).dim(0, count).dtype<int64_t>("int64").contiguous();
  Check{kStopOp, "stop_seqs_len", stop_seqs_len}.rank(2).dim(0, count).dim(1, stop_seqs.size(1));
  Check{kStopOp, "stop_seqs_len", stop_seqs_len}.dtype<int32_t>("int32").contiguous();
  a.pre_ids = pre_ids.data<int64_t>(), a.pre_step = pre_ids.stride(0),
  a.pre_width = pre_ids.size(1);
  a.seqs = stop_seqs.data<int64_t>(), a.seq_sizes = stop_seqs_len.data<int32_t>();
  a.num = stop_seqs.size(1), a.length = stop_seqs.size(2);
}

inline void stop_lists(StopArgs& a, Tensor stop_token_ids, Tensor stop_token_ids_len,
                       int64_t count) {
  Check{kStopOp, "stop_token_ids", stop_token_ids}.rank(2).dim(0, count).dtype<int64_t>("int64");
  Check{kStopOp, "stop_token_ids", stop_token_ids}.contiguous();
  a.listed = stop_token_ids.data<int64_t>(), a.listed_width = stop_token_ids.size(1);
  a.listed_sizes =
      slots<int32_t>(kStopOp, "stop_token_ids_len", stop_token_ids_len, count, "int32");
}

// Vectors of at least the rows of this step.
inline void stop_rows(StopArgs& a, Tensor topk_ids, Tensor seq_lens, int64_t count) {
  a.n = count_slots(kStopOp, "topk_ids", topk_ids), a.tokens = topk_ids.data<int64_t>();
  if (a.n > count)
    fail("ValueError", kStopOp, ".topk_ids: want at most ", count, " rows (slots), have ",
         shape_text(topk_ids));
  Check{kStopOp, "seq_lens", seq_lens}.dtype<int32_t>("int32").contiguous().slot_count();
  if (seq_lens.numel() < a.n)
    fail("ValueError", kStopOp, ".seq_lens: want at least ", a.n, " elements, have ",
         shape_text(seq_lens));
  a.seq_lens = seq_lens.data<int32_t>();
}

void set_stop_value_multi_ends(Tensor topk_ids, Tensor stop_flags, Tensor seq_lens, Tensor end_ids,
                               Tensor next_tokens, Tensor pre_ids, Tensor step_idx,
                               Tensor stop_seqs, Tensor stop_seqs_len, Tensor stop_token_ids,
                               Tensor stop_token_ids_len, Tensor min_tokens, Tensor max_tokens,
                               bool beam_search) {
  StopArgs a{};
  Check{kStopOp, "stop_flags", stop_flags}.dtype<bool>("bool").contiguous();
  const int64_t count = Check{kStopOp, "stop_flags", stop_flags}.slot_count();
  a.stopped = stop_flags.data<bool>();
  stop_rows(a, topk_ids, seq_lens, count);
  a.ends = id_list(kStopOp, "end_ids", end_ids);
  if (a.ends.count == 0) fail("ValueError", kStopOp, ".end_ids: want at least one id, have none");
  a.next = slots<int64_t>(kStopOp, "next_tokens", next_tokens, count, "int64");
  a.steps = slots<int64_t>(kStopOp, "step_idx", step_idx, count, "int64");
  a.min_tokens = slots<int64_t>(kStopOp, "min_tokens", min_tokens, count, "int64");
  a.max_tokens = slots<int64_t>(kStopOp, "max_tokens", max_tokens, count, "int64");
  stop_histories(a, pre_ids, stop_seqs, stop_seqs_len, count);
  stop_lists(a, stop_token_ids, stop_token_ids_len, count);
  a.ends_count = !beam_search, a.prefill_stop = prefill_one_step_stop();
  same_device(kStopOp, topk_ids,
              {stop_flags, seq_lens, end_ids, next_tokens, pre_ids, step_idx, stop_seqs,
               stop_seqs_len, stop_token_ids, stop_token_ids_len, min_tokens, max_tokens});
  run(launch_on(kStopOp, topk_ids), set_stop_value_multi_ends_slots, slot_grid(a.n),
      dim3(kSlotThreads), 0, a);
}
FD_EXPORT(set_stop_value_multi_ends)

}  // namespace fd
#endif

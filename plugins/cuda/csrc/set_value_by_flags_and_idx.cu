#include "fd/overlap.cuh"
#include "fd/types.h"

namespace fd {

struct FlaggedSlots {
  const int32_t *encoder, *decoder;
  const int64_t* step_idx;
  const bool* stopped;
  int64_t count;

  __device__ __forceinline__ bool writes(int64_t b) const {
    return !stopped[b] && (encoder[b] != 0 || decoder[b] != 0) && step_idx[b] > 0;
  }
};

// A thread a slot. A step or a length that leaves its row writes nothing.
__global__ void set_value_by_flags_and_idx_slots(FlaggedSlots slots, int64_t* history,
                                                 int64_t history_step, int64_t history_width,
                                                 const int64_t* ids, int64_t ids_step,
                                                 int64_t ids_width) {
  let_next_start();
  wait_for_inputs();
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b >= slots.count || !slots.writes(b)) return;
  const int64_t column = slots.encoder[b] > 0 ? slots.encoder[b] - 1 : 0;
  const int64_t step = slots.step_idx[b];
  if (step < history_width && column < ids_width)
    history[b * history_step + step] = ids[b * ids_step + column];
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/ids.h"

namespace fd {

void set_value_by_flags_and_idx(Tensor pre_ids_all, Tensor input_ids, Tensor seq_lens_this_time,
                                Tensor seq_lens_encoder, Tensor seq_lens_decoder, Tensor step_idx,
                                Tensor stop_flags) {
  const char* op = "set_value_by_flags_and_idx";
  Check{op, "pre_ids_all", pre_ids_all}.rank(2);
  const int64_t batch = pre_ids_all.size(0);
  check_id_rows(op, "pre_ids_all", pre_ids_all, batch);
  check_id_rows(op, "input_ids", input_ids, batch);
  lens_of(op, "seq_lens_this_time", seq_lens_this_time, batch);
  const FlaggedSlots slots{lens_of(op, "seq_lens_encoder", seq_lens_encoder, batch),
                           lens_of(op, "seq_lens_decoder", seq_lens_decoder, batch),
                           per_slot<int64_t>(op, "step_idx", step_idx, batch, "int64"),
                           per_slot<bool>(op, "stop_flags", stop_flags, batch, "bool"), batch};
  same_device(
      op, pre_ids_all,
      {input_ids, seq_lens_this_time, seq_lens_encoder, seq_lens_decoder, step_idx, stop_flags});
  run_overlapped(launch_on(op, pre_ids_all), set_value_by_flags_and_idx_slots,
                 dim3((batch + 127) / 128), dim3(128), 0, slots, pre_ids_all.data<int64_t>(),
                 pre_ids_all.stride(0), pre_ids_all.size(1),
                 static_cast<const int64_t*>(input_ids.data<int64_t>()), input_ids.stride(0),
                 input_ids.size(1));
}
FD_EXPORT(set_value_by_flags_and_idx)

}  // namespace fd
#endif

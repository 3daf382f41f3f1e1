#include "fd/ragged.cuh"

namespace fd {

struct PositionSlots {
  const int32_t *encoder, *decoder, *this_time;

  __device__ __forceinline__ int64_t tokens(int64_t b) const {
    if (encoder[b] > 0) return encoder[b];
    return decoder[b] > 0 && this_time[b] > 0 ? this_time[b] : 0;
  }
};

// A block a slot; what has no room is left out.
template <typename P>
__global__ void get_position_ids_slots(PositionSlots slots, P* positions, int64_t room) {
  __shared__ int64_t scratch[kWarp];
  let_next_start();
  wait_for_inputs();
  const int64_t b = blockIdx.x;
  const int64_t start = sum_before(b, scratch, [&](int64_t i) { return slots.tokens(i); });
  const int64_t end = min(room, start + slots.tokens(b)), first = slots.decoder[b];
  for (int64_t t = start + threadIdx.x; t < end; t += blockDim.x)
    positions[t] = static_cast<P>(first + t - start);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/ids.h"

namespace fd {

void get_position_ids_and_mask_encoder_batch(Tensor seq_lens_encoder, Tensor seq_lens_decoder,
                                             Tensor seq_lens_this_time, Tensor position_ids) {
  const char* op = "get_position_ids_and_mask_encoder_batch";
  const int64_t batch = Check{op, "seq_lens_encoder", seq_lens_encoder}.slot_count();
  const PositionSlots slots{lens_of(op, "seq_lens_encoder", seq_lens_encoder, batch),
                            lens_of(op, "seq_lens_decoder", seq_lens_decoder, batch),
                            lens_of(op, "seq_lens_this_time", seq_lens_this_time, batch)};
  Check{op, "position_ids", position_ids}.rank(1);
  const int64_t room = ids_of(op, "position_ids", position_ids).count;
  same_device(op, position_ids, {seq_lens_encoder, seq_lens_decoder, seq_lens_this_time});
  const Launch on = launch_on(op, position_ids);
  const dim3 grid(batch), block(128);
  if (is<int64_t>(position_ids))
    run_overlapped(on, get_position_ids_slots<int64_t>, grid, block, 0, slots,
                   position_ids.data<int64_t>(), room);
  else
    run_overlapped(on, get_position_ids_slots<int32_t>, grid, block, 0, slots,
                   position_ids.data<int32_t>(), room);
}
FD_EXPORT(get_position_ids_and_mask_encoder_batch)

}  // namespace fd
#endif

#include "fd/ragged.cuh"

namespace fd {

struct PaddingOffset {
  const int64_t *input_ids, *draft_tokens;        // draft_tokens null: none
  const int32_t *seq_len, *encoder, *decoder;     // encoder, decoder may be null
  int64_t input_width, draft_width, slots, room;  // room: tokens of the outputs
  int64_t* x;
  int32_t *owner, *cu_q, *cu_k;

  __device__ __forceinline__ bool drafts(int64_t b) const {
    return draft_tokens != nullptr && encoder[b] <= 0;
  }
  // Ids of a slot, never more than there are.
  __device__ __forceinline__ int64_t count(int64_t b) const {
    const int64_t most = drafts(b) ? draft_width : input_width, n = seq_len[b];
    return n < 0 ? 0 : n > most ? most : n;
  }
  __device__ __forceinline__ int64_t cached(int64_t b) const {
    return decoder == nullptr ? 0 : decoder[b];
  }
  __device__ __forceinline__ const int64_t* ids(int64_t b) const {
    return drafts(b) ? draft_tokens + b * draft_width : input_ids + b * input_width;
  }
};

// A block a slot; the last one fills what is left.
__global__ void get_padding_offset_slots(PaddingOffset all) {
  constexpr int64_t kPaddingId = 2;
  __shared__ int64_t scratch[2][kWarp];
  let_next_start();
  wait_for_inputs();
  const int64_t b = blockIdx.x;
  const int64_t start = sum_before(b, scratch[0], [&](int64_t i) { return all.count(i); });
  const int64_t cached = sum_before(b, scratch[1], [&](int64_t i) { return all.cached(i); });
  if (threadIdx.x == 0) all.cu_q[b] = start, all.cu_k[b] = start + cached;
  const bool last = b == all.slots;
  const int64_t end = last ? all.room : min(all.room, start + all.count(b));
  const int64_t* ids = last ? nullptr : all.ids(b);
  for (int64_t t = start + threadIdx.x; t < end; t += blockDim.x) {
    all.x[t] = last ? kPaddingId : ids[t - start];
    all.owner[t] = last ? -1 : static_cast<int32_t>(b);
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/tokens.h"
#include "fd/cuda.h"

namespace fd {

void get_padding_offset(Tensor input_ids, Tensor seq_len, OptTensor draft_tokens,
                        OptTensor seq_lens_encoder, OptTensor seq_lens_decoder,
                        int64_t cpu_token_num, Tensor x_remove_padding, Tensor batch_id_per_token,
                        Tensor cu_seqlens_q, Tensor cu_seqlens_k) {
  const char* op = "get_padding_offset";
  const PaddingInputs in = check_padding_inputs(op, input_ids, seq_len, draft_tokens,
                                                seq_lens_encoder, seq_lens_decoder);
  const PaddingOutputs to = check_padding_outputs(op, in.slots, cpu_token_num, x_remove_padding,
                                                  batch_id_per_token, cu_seqlens_q, cu_seqlens_k);
  const PaddingOffset all{in.input_ids,   in.draft_tokens, in.seq_len, in.encoder,    in.decoder,
                          in.input_width, in.draft_width,  in.slots,   cpu_token_num, to.x,
                          to.owner,       to.cu_q,         to.cu_k};
  same_device(op, input_ids,
              {seq_len, draft_tokens, seq_lens_encoder, seq_lens_decoder, x_remove_padding,
               batch_id_per_token, cu_seqlens_q, cu_seqlens_k});
  run_overlapped(launch_on(op, input_ids), get_padding_offset_slots, dim3(all.slots + 1), dim3(128),
                 0, all);
}
FD_EXPORT(get_padding_offset)

}  // namespace fd
#endif

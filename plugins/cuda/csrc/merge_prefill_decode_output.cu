#include "fd/rowmove.cuh"

namespace fd {

// Token i of slot b is row b * max_token + i here. Rows outside the results stay.
struct MergePrefillDecodeOutput {
  ByteRows from, to;
  const int32_t *encoder, *decoder, *this_time, *starts;
  int64_t max_token;

  __device__ RowMove operator()(int64_t row) const {
    const int64_t b = row / max_token, i = row % max_token;
    if (encoder[b] != 0 || decoder[b] <= 0 || i >= this_time[b]) return kStay;
    const int64_t at = starts[b] + i;
    if (at < 0 || at >= to.count) return kStay;
    return {to.row(at), from.row(at), 0};
  }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/tokens.h"
#include "fd/rowmove.h"

namespace fd {

void merge_prefill_decode_output(Tensor encoder_res, Tensor decoder_res, Tensor seq_lens_encoder,
                                 Tensor seq_lens_decoder, Tensor seq_lens_this_time,
                                 Tensor cu_seq_q, int64_t head_num, int64_t head_dim,
                                 int64_t max_token) {
  const char* op = "merge_prefill_decode_output";
  const MergeSlots s = check_merge(op, encoder_res, decoder_res, seq_lens_encoder, seq_lens_decoder,
                                   seq_lens_this_time, cu_seq_q, head_num * head_dim);
  const MergePrefillDecodeOutput map{byte_rows(op, "decoder_res", decoder_res),
                                     byte_rows(op, "encoder_res", encoder_res),
                                     s.encoder,
                                     s.decoder,
                                     s.this_time,
                                     s.starts,
                                     max_token};
  if (max_token < 0) fail("ValueError", op, ".max_token: want >= 0, have ", max_token);
  same_device(op, encoder_res,
              {decoder_res, seq_lens_encoder, seq_lens_decoder, seq_lens_this_time, cu_seq_q});
  move_all(launch_on(op, encoder_res), map, s.count * max_token, map.to.bytes, {map.from, map.to});
}
FD_EXPORT(merge_prefill_decode_output)

}  // namespace fd
#endif

#include "fd/rowmove.cuh"

namespace fd {

// Rows 0 .. rows - 1: the output; the next `rows`: what first_token_out gets, if it is wanted. A
// row whose source lies outside tmp_out stays.
struct RebuildPadding {
  ByteRows from, to, first;                                     // first.base null: not wanted
  const int32_t *cu, *this_time, *decoder, *encoder, *offsets;  // offsets null: one row per slot
  int64_t slots, rows, max_input_length;

  __device__ RowMove operator()(int64_t i) const {
    const int64_t r = i % rows;
    const int64_t o = offsets != nullptr ? r + offsets[r] : 0;
    const int64_t b = offsets != nullptr ? o / max_input_length : r;
    if (o < 0 || b >= slots) return kStay;
    const bool active = this_time[b] != 0 && (decoder[b] != 0 || encoder[b] != 0);
    const int64_t within = offsets != nullptr ? o - b * max_input_length : 0;
    const int64_t src = cu[b] + within + (encoder[b] > 0 ? encoder[b] - 1 : 0);
    return i < rows ? output(r, active, src) : first_token(b, active, src);
  }
  __device__ RowMove output(int64_t r, bool active, int64_t src) const {
    if (!active) return {to.row(r), nullptr, 0};
    if (src < 0 || src >= from.count) return kStay;
    return {to.row(r), from.row(src), 0};
  }
  __device__ RowMove first_token(int64_t b, bool active, int64_t src) const {
    if (!active || encoder[b] <= 0 || src <= 0 || src >= from.count) return kStay;
    return {first.row(b), from.row(src - 1), 0};
  }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/tokens.h"
#include "fd/rowmove.h"

namespace fd {

void rebuild_padding(Tensor tmp_out, Tensor cu_seqlens_q, Tensor seq_len_this_time,
                     Tensor seq_lens_decoder, Tensor seq_lens_encoder,
                     OptTensor output_padding_offset, OptTensor first_token_out,
                     int64_t max_input_length, bool enable_logprob, int64_t num_rows, Tensor out) {
  const char* op = "rebuild_padding";
  Check{op, "tmp_out", tmp_out}.rank(2);
  Check{op, "cu_seqlens_q", cu_seqlens_q}.rank(1);
  const int64_t slots = cu_seqlens_q.size(0) - 1;
  RebuildPadding map{};
  map.slots = slots, map.rows = num_rows, map.max_input_length = max_input_length;
  map.cu = lens_of(op, "cu_seqlens_q", cu_seqlens_q, slots + 1);
  map.this_time = lens_of(op, "seq_len_this_time", seq_len_this_time, slots);
  map.decoder = lens_of(op, "seq_lens_decoder", seq_lens_decoder, slots);
  map.encoder = lens_of(op, "seq_lens_encoder", seq_lens_encoder, slots);
  if (!output_padding_offset && num_rows != slots)
    fail("ValueError", op, ".num_rows: want ", slots, ", have ", num_rows);
  if (output_padding_offset) {
    check_rebuild_offsets(op, output_padding_offset, num_rows, max_input_length);
    map.offsets = output_padding_offset.data<int32_t>();
  }
  Check{op, "out", out}.rank(2).dim(0, num_rows).dim(1, tmp_out.size(1)).same_dtype(tmp_out);
  map.from = byte_rows(op, "tmp_out", tmp_out), map.to = byte_rows(op, "out", out);
  const bool logprob = enable_logprob && output_padding_offset;  // as in the source
  if (logprob) {
    check_first_token(op, first_token_out, tmp_out, slots);
    map.first = byte_rows(op, "first_token_out", first_token_out);
  }
  same_device(op, tmp_out,
              {cu_seqlens_q, seq_len_this_time, seq_lens_decoder, seq_lens_encoder,
               output_padding_offset, first_token_out, out});
  move_all(launch_on(op, tmp_out), map, logprob ? 2 * num_rows : num_rows, map.to.bytes,
           {map.from, map.to, map.first});
}
FD_EXPORT(rebuild_padding)

}  // namespace fd
#endif

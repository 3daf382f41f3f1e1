#include "fd/rowmove.cuh"

namespace fd {

// A slot's last row, zeros for the slot that is image tokens alone, ones for one without tokens. An
// end outside the hidden states writes nothing.
struct ExtractTextTokenOutput {
  ByteRows from, to;
  const int32_t *longest, *index, *images, *this_time, *ends;

  __device__ RowMove operator()(int64_t b) const {
    if (*longest == *images && b == *index) return {to.row(b), nullptr, 0};
    if (this_time[b] == 0) return {to.row(b), nullptr, __float_as_uint(1.f)};
    const int64_t end = ends[b + 1];
    if (end < 1 || end > from.count) return kStay;
    return {to.row(b), from.row(end - 1), 0};
  }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/ids.h"
#include "fd/rowmove.h"

namespace fd {

void extract_text_token_output(Tensor max_seq_len, Tensor max_seq_len_index,
                               Tensor mm_token_num_len, Tensor seq_lens_this_time,
                               Tensor cu_seqlens_q, Tensor hidden_states, Tensor out) {
  const char* op = "extract_text_token_output";
  const int64_t batch = Check{op, "seq_lens_this_time", seq_lens_this_time}.slot_count();
  ExtractTextTokenOutput map{};
  map.longest = lens_of(op, "max_seq_len", max_seq_len, 1);
  map.index = lens_of(op, "max_seq_len_index", max_seq_len_index, 1);
  map.images = lens_of(op, "mm_token_num_len", mm_token_num_len, 1);
  map.this_time = lens_of(op, "seq_lens_this_time", seq_lens_this_time, batch);
  map.ends = lens_of(op, "cu_seqlens_q", cu_seqlens_q, batch + 1);
  Check{op, "hidden_states", hidden_states}.rank(2).dtype<float>("float32");
  Check{op, "out", out}.rank(2).dim(0, batch).dim(1, hidden_states.size(1)).dtype<float>("float32");
  map.from = byte_rows(op, "hidden_states", hidden_states);
  map.to = byte_rows(op, "out", out);
  same_device(
      op, hidden_states,
      {max_seq_len, max_seq_len_index, mm_token_num_len, seq_lens_this_time, cu_seqlens_q, out});
  move_all(launch_on(op, hidden_states), map, batch, map.to.bytes, {map.from, map.to});
}
FD_EXPORT(extract_text_token_output)

}  // namespace fd
#endif

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
#include "fd/checks/tokens.h"
#include "fd/rowmove.h"

namespace fd {

void extract_text_token_output(Tensor max_seq_len, Tensor max_seq_len_index,
                               Tensor mm_token_num_len, Tensor seq_lens_this_time,
                               Tensor cu_seqlens_q, Tensor hidden_states, Tensor out) {
  const char* op = "extract_text_token_output";
  const ExtractSlots s = check_extract(op, max_seq_len, max_seq_len_index, mm_token_num_len,
                                       seq_lens_this_time, cu_seqlens_q, hidden_states, out);
  const ExtractTextTokenOutput map{byte_rows(op, "hidden_states", hidden_states),
                                   byte_rows(op, "out", out),
                                   s.longest,
                                   s.index,
                                   s.images,
                                   s.this_time,
                                   s.ends};
  same_device(
      op, hidden_states,
      {max_seq_len, max_seq_len_index, mm_token_num_len, seq_lens_this_time, cu_seqlens_q, out});
  move_all(launch_on(op, hidden_states), map, s.count, map.to.bytes, {map.from, map.to});
}
FD_EXPORT(extract_text_token_output)

}  // namespace fd
#endif

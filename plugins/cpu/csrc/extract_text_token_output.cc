#include <algorithm>

#include "fd/ids.h"
#include "fd/rowcopy.h"

namespace fd {
namespace {
constexpr const char* kOp = "extract_text_token_output";
}  // namespace

void extract_text_token_output(Tensor max_seq_len, Tensor max_seq_len_index,
                               Tensor mm_token_num_len, Tensor seq_lens_this_time,
                               Tensor cu_seqlens_q, Tensor hidden_states, Tensor out) {
  const int64_t batch = Check{kOp, "seq_lens_this_time", seq_lens_this_time}.slot_count();
  const int32_t longest = *lens_of(kOp, "max_seq_len", max_seq_len, 1);
  const int32_t index = *lens_of(kOp, "max_seq_len_index", max_seq_len_index, 1);
  const int32_t images = *lens_of(kOp, "mm_token_num_len", mm_token_num_len, 1);
  const int32_t* this_time = lens_of(kOp, "seq_lens_this_time", seq_lens_this_time, batch);
  const int32_t* cu = lens_of(kOp, "cu_seqlens_q", cu_seqlens_q, batch + 1);
  Check{kOp, "hidden_states", hidden_states}.rank(2).dtype<float>("float32");
  Check{kOp, "out", out}
      .rank(2)
      .dim(0, batch)
      .dim(1, hidden_states.size(1))
      .dtype<float>("float32");
  const ByteRows from = byte_rows(kOp, "hidden_states", hidden_states);
  const ByteRows to = byte_rows(kOp, "out", out);
  const auto all_image = [=](int64_t b) { return longest == images && b == index; };
  for (int64_t b = 0; b < batch; ++b)
    if (!all_image(b) && this_time[b] != 0 && (cu[b + 1] < 1 || cu[b + 1] > from.count))
      fail("ValueError", kOp, ".cu_seqlens_q: want ends in [1, ", from.count, "], have ", cu[b + 1],
           " for slot ", b);
  for (int64_t b = 0; b < batch; ++b) {
    if (all_image(b))
      to.zero(b);
    else if (this_time[b] != 0)
      to.copy_from(b, from, cu[b + 1] - 1);
    else
      std::fill_n(reinterpret_cast<float*>(to.row(b)), out.size(1), 1.0f);
  }
}

FD_EXPORT(extract_text_token_output)

}  // namespace fd

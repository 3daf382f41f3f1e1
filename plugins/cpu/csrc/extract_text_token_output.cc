#include <algorithm>

#include "fd/checks/tokens.h"
#include "fd/rowcopy.h"

namespace fd {
namespace {
constexpr const char* kOp = "extract_text_token_output";
}  // namespace

void extract_text_token_output(Tensor max_seq_len, Tensor max_seq_len_index,
                               Tensor mm_token_num_len, Tensor seq_lens_this_time,
                               Tensor cu_seqlens_q, Tensor hidden_states, Tensor out) {
  const ExtractSlots s = check_extract(kOp, max_seq_len, max_seq_len_index, mm_token_num_len,
                                       seq_lens_this_time, cu_seqlens_q, hidden_states, out);
  const ByteRows from = byte_rows(kOp, "hidden_states", hidden_states);
  const ByteRows to = byte_rows(kOp, "out", out);
  const auto all_image = [&](int64_t b) { return *s.longest == *s.images && b == *s.index; };
  for (int64_t b = 0; b < s.count; ++b)
    if (!all_image(b) && s.this_time[b] != 0 && (s.ends[b + 1] < 1 || s.ends[b + 1] > from.count))
      fail("ValueError", kOp, ".cu_seqlens_q: want ends in [1, ", from.count, "], have ",
           s.ends[b + 1], " for slot ", b);
  for (int64_t b = 0; b < s.count; ++b) {
    if (all_image(b))
      to.zero(b);
    else if (s.this_time[b] != 0)
      to.copy_from(b, from, s.ends[b + 1] - 1);
    else
      std::fill_n(reinterpret_cast<float*>(to.row(b)), out.size(1), 1.0f);
  }
}

FD_EXPORT(extract_text_token_output)

}  // namespace fd

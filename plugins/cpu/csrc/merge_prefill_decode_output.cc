#include "fd/checks/tokens.h"
#include "fd/rowcopy.h"

namespace fd {
namespace {

constexpr const char* kOp = "merge_prefill_decode_output";

struct Slots : MergeSlots {
  bool decodes(int64_t b) const { return encoder[b] == 0 && decoder[b] > 0; }
};

void check_slot(const Slots& s, int64_t b, int64_t tokens, int64_t max_token) {
  if (s.this_time[b] > max_token || s.this_time[b] < 0)
    fail("ValueError", kOp, ".max_token: want at least the tokens of every decode slot, have ",
         max_token, " for ", s.this_time[b], " tokens of slot ", b);
  if (s.starts[b] < 0 || int64_t{s.starts[b]} + s.this_time[b] > tokens)
    fail("ValueError", kOp, ".cu_seq_q: want rows in [0, ", tokens, "), have ", s.this_time[b],
         " rows from ", s.starts[b], " for slot ", b);
}

}  // namespace

void merge_prefill_decode_output(Tensor encoder_res, Tensor decoder_res, Tensor seq_lens_encoder,
                                 Tensor seq_lens_decoder, Tensor seq_lens_this_time,
                                 Tensor cu_seq_q, int64_t head_num, int64_t head_dim,
                                 int64_t max_token) {
  const Slots slots{check_merge(kOp, encoder_res, decoder_res, seq_lens_encoder, seq_lens_decoder,
                                seq_lens_this_time, cu_seq_q, head_num * head_dim)};
  const ByteRows to = byte_rows(kOp, "encoder_res", encoder_res);
  const ByteRows from = byte_rows(kOp, "decoder_res", decoder_res);
  for (int64_t b = 0; b < slots.count; ++b)
    if (slots.decodes(b)) check_slot(slots, b, to.count, max_token);
  for (int64_t b = 0; b < slots.count; ++b)
    for (int64_t i = 0; slots.decodes(b) && i < slots.this_time[b]; ++i)
      to.copy_from(slots.starts[b] + i, from, slots.starts[b] + i);
}

FD_EXPORT(merge_prefill_decode_output)

}  // namespace fd

#include <vector>

#include "fd/checks/tokens.h"
#include "fd/rowcopy.h"

namespace fd {
namespace {

constexpr const char* kOp = "rebuild_padding";

struct Batch {
  int64_t slots, tokens, max_input_length;
  const int32_t *cu, *this_time, *decoder, *encoder;

  bool takes_part(int64_t b) const {
    return this_time[b] != 0 && (decoder[b] != 0 || encoder[b] != 0);
  }
  int64_t last(int64_t b) const { return encoder[b] > 0 ? encoder[b] - 1 : 0; }
};

// Row of tmp_out that an output row copies; `src` is -1 where the row stays zero.
struct Pick {
  int64_t slot, src;
};

int64_t checked(const Batch& batch, int64_t slot, int64_t src) {
  if (src < 0 || src >= batch.tokens)
    fail("ValueError", kOp, ".cu_seqlens_q: want rows in [0, ", batch.tokens,
         ") of tmp_out, have row ", src, " for slot ", slot);
  return src;
}

Pick last_of_slot(const Batch& batch, int64_t b) {
  if (!batch.takes_part(b)) return {b, -1};
  return {b, checked(batch, b, batch.cu[b] + batch.last(b))};
}

Pick by_offset(const Batch& batch, int64_t r, int64_t offset) {
  const int64_t o = r + offset, b = o / batch.max_input_length;
  if (o < 0 || b >= batch.slots)
    fail("ValueError", kOp, ".output_padding_offset: want slots in [0, ", batch.slots,
         "), have offset ", offset, " at position ", r);
  if (!batch.takes_part(b)) return {b, -1};
  const int64_t first = o - (b * batch.max_input_length - batch.cu[b]);
  return {b, checked(batch, b, first + batch.last(b))};
}

int64_t rows_wanted(const Batch& batch, bool by_offsets) {
  if (!by_offsets) return batch.slots;
  int64_t rows = batch.tokens;
  for (int64_t b = 0; b < batch.slots; ++b) rows -= batch.encoder[b] > 0 ? batch.encoder[b] - 1 : 0;
  return rows;
}

std::vector<Pick> picks(const Batch& batch, const OptTensor& offsets) {
  const int64_t rows = rows_wanted(batch, static_cast<bool>(offsets));
  std::vector<Pick> chosen;
  if (!offsets) {
    for (int64_t b = 0; b < rows; ++b) chosen.push_back(last_of_slot(batch, b));
    return chosen;
  }
  check_rebuild_offsets(kOp, offsets, rows, batch.max_input_length);
  for (int64_t r = 0; r < rows; ++r)
    chosen.push_back(by_offset(batch, r, offsets.data<int32_t>()[r]));
  return chosen;
}

// Where the scores of the token before a prompt's last one go; only with offsets, as in the source.
bool wants_first_token(const OptTensor& offsets, bool enable_logprob, const OptTensor& first,
                       const Tensor& tmp_out, int64_t slots) {
  if (!enable_logprob || !offsets) return false;
  check_first_token(kOp, first, tmp_out, slots);
  return true;
}

}  // namespace

// The list of source rows is a temporary: every row is checked before the first is written.
void rebuild_padding(Tensor tmp_out, Tensor cu_seqlens_q, Tensor seq_len_this_time,
                     Tensor seq_lens_decoder, Tensor seq_lens_encoder,
                     OptTensor output_padding_offset, OptTensor first_token_out,
                     int64_t max_input_length, bool enable_logprob, int64_t num_rows, Tensor out) {
  Check{kOp, "tmp_out", tmp_out}.rank(2);
  Check{kOp, "cu_seqlens_q", cu_seqlens_q}.rank(1);
  const int64_t slots = cu_seqlens_q.size(0) - 1;
  const Batch batch{slots,
                    tmp_out.size(0),
                    max_input_length,
                    lens_of(kOp, "cu_seqlens_q", cu_seqlens_q, slots + 1),
                    lens_of(kOp, "seq_len_this_time", seq_len_this_time, slots),
                    lens_of(kOp, "seq_lens_decoder", seq_lens_decoder, slots),
                    lens_of(kOp, "seq_lens_encoder", seq_lens_encoder, slots)};
  const bool logprob =
      wants_first_token(output_padding_offset, enable_logprob, first_token_out, tmp_out, slots);
  const std::vector<Pick> chosen = picks(batch, output_padding_offset);
  if (static_cast<int64_t>(chosen.size()) != num_rows)
    fail("ValueError", kOp, ".num_rows: want ", chosen.size(), ", have ", num_rows);
  Check{kOp, "out", out}.rank(2).dim(0, num_rows).dim(1, tmp_out.size(1)).same_dtype(tmp_out);
  const ByteRows from = byte_rows(kOp, "tmp_out", tmp_out), to = byte_rows(kOp, "out", out);
  for (int64_t r = 0; r < num_rows; ++r) {
    const auto [slot, src] = chosen[r];
    if (src < 0)
      to.zero(r);
    else
      to.copy_from(r, from, src);
    if (logprob && src > 0 && batch.encoder[slot] > 0)
      byte_rows(kOp, "first_token_out", first_token_out).copy_from(slot, from, src - 1);
  }
}

FD_EXPORT(rebuild_padding)

}  // namespace fd

#include <algorithm>

#include "fd/ids.h"

namespace fd {
namespace {

constexpr const char* kOp = "get_padding_offset";
constexpr int64_t kPaddingId = 2;

// Where one slot's ids come from, and how many there are at most.
struct Source {
  const int64_t* ids;
  int64_t width;
};

struct Slots {
  const int64_t* input_ids;
  int64_t input_width;
  const int64_t* draft_tokens;  // null: none
  int64_t draft_width;
  const int32_t* encoder;

  Source of(int64_t b) const {
    if (draft_tokens != nullptr && encoder[b] <= 0)
      return {draft_tokens + b * draft_width, draft_width};
    return {input_ids + b * input_width, input_width};
  }
};

Slots slots_of(const Tensor& input_ids, const OptTensor& draft_tokens,
               const OptTensor& seq_lens_encoder) {
  Check{kOp, "input_ids", input_ids}.rank(2).dtype<int64_t>("int64").contiguous();
  const int64_t batch = input_ids.size(0);
  Slots s{input_ids.data<int64_t>(), input_ids.size(1), nullptr, 0, nullptr};
  if (seq_lens_encoder) s.encoder = lens_of(kOp, "seq_lens_encoder", seq_lens_encoder, batch);
  if (!draft_tokens) return s;
  if (!seq_lens_encoder)
    fail("ValueError", kOp, ".seq_lens_encoder: want it together with draft_tokens, have None");
  Check{kOp, "draft_tokens", draft_tokens}
      .rank(2)
      .dim(0, batch)
      .dtype<int64_t>("int64")
      .contiguous();
  s.draft_tokens = draft_tokens.data<int64_t>();
  s.draft_width = draft_tokens.size(1);
  return s;
}

void check_lengths(const Slots& slots, const int32_t* lens, int64_t batch, int64_t tokens) {
  int64_t total = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t most = slots.of(b).width;
    if (lens[b] < 0 || lens[b] > most)
      fail("ValueError", kOp, ".seq_len: want 0 to ", most, " ids in slot ", b, ", have ", lens[b]);
    total += lens[b];
  }
  if (total > tokens)
    fail("ValueError", kOp, ".cpu_token_num: want at least the ", total,
         " tokens that seq_len sums to, have ", tokens);
}

}  // namespace

void get_padding_offset(Tensor input_ids, Tensor seq_len, OptTensor draft_tokens,
                        OptTensor seq_lens_encoder, OptTensor seq_lens_decoder,
                        int64_t cpu_token_num, Tensor x_remove_padding, Tensor batch_id_per_token,
                        Tensor cu_seqlens_q, Tensor cu_seqlens_k) {
  const Slots slots = slots_of(input_ids, draft_tokens, seq_lens_encoder);
  const int64_t batch = input_ids.size(0), tokens = cpu_token_num;
  const int32_t* lens = lens_of(kOp, "seq_len", seq_len, batch);
  const int32_t* cached =
      seq_lens_decoder ? lens_of(kOp, "seq_lens_decoder", seq_lens_decoder, batch) : nullptr;
  Check{kOp, "x_remove_padding", x_remove_padding}.rank(1).dim(0, tokens).dtype<int64_t>("int64");
  Check{kOp, "x_remove_padding", x_remove_padding}.contiguous();
  lens_of(kOp, "batch_id_per_token", batch_id_per_token, tokens);
  lens_of(kOp, "cu_seqlens_q", cu_seqlens_q, batch + 1);
  lens_of(kOp, "cu_seqlens_k", cu_seqlens_k, batch + 1);
  check_lengths(slots, lens, batch, tokens);
  int64_t* x = x_remove_padding.data<int64_t>();
  int32_t* owner = batch_id_per_token.data<int32_t>();
  int32_t *cu_q = cu_seqlens_q.data<int32_t>(), *cu_k = cu_seqlens_k.data<int32_t>();
  cu_q[0] = cu_k[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    std::copy_n(slots.of(b).ids, lens[b], x + cu_q[b]);
    std::fill_n(owner + cu_q[b], lens[b], static_cast<int32_t>(b));
    cu_q[b + 1] = cu_q[b] + lens[b];
    cu_k[b + 1] = cu_k[b] + lens[b] + (cached != nullptr ? cached[b] : 0);
  }
  std::fill(x + cu_q[batch], x + tokens, kPaddingId);
  std::fill(owner + cu_q[batch], owner + tokens, -1);
}

FD_EXPORT(get_padding_offset)

}  // namespace fd

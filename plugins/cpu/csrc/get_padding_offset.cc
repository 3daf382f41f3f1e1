#include <algorithm>

#include "fd/checks/tokens.h"

namespace fd {
namespace {

constexpr const char* kOp = "get_padding_offset";
constexpr int64_t kPaddingId = 2;

// Where one slot's ids come from, and how many there are at most.
struct Source {
  const int64_t* ids;
  int64_t width;
};

struct Slots : PaddingInputs {
  Source of(int64_t b) const {
    if (draft_tokens != nullptr && encoder[b] <= 0)
      return {draft_tokens + b * draft_width, draft_width};
    return {input_ids + b * input_width, input_width};
  }
};

void check_lengths(const Slots& slots, int64_t tokens) {
  int64_t total = 0;
  for (int64_t b = 0; b < slots.slots; ++b) {
    const int64_t most = slots.of(b).width;
    const int32_t n = slots.seq_len[b];
    if (n < 0 || n > most)
      fail("ValueError", kOp, ".seq_len: want 0 to ", most, " ids in slot ", b, ", have ", n);
    total += n;
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
  const Slots slots{check_padding_inputs(kOp, input_ids, seq_len, draft_tokens, seq_lens_encoder,
                                         seq_lens_decoder)};
  const int64_t batch = slots.slots, tokens = cpu_token_num;
  const auto [x, owner, cu_q, cu_k] = check_padding_outputs(
      kOp, batch, tokens, x_remove_padding, batch_id_per_token, cu_seqlens_q, cu_seqlens_k);
  check_lengths(slots, tokens);
  const int32_t* lens = slots.seq_len;
  cu_q[0] = cu_k[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    std::copy_n(slots.of(b).ids, lens[b], x + cu_q[b]);
    std::fill_n(owner + cu_q[b], lens[b], static_cast<int32_t>(b));
    cu_q[b + 1] = cu_q[b] + lens[b];
    cu_k[b + 1] = cu_k[b] + lens[b] + (slots.decoder != nullptr ? slots.decoder[b] : 0);
  }
  std::fill(x + cu_q[batch], x + tokens, kPaddingId);
  std::fill(owner + cu_q[batch], owner + tokens, -1);
}

FD_EXPORT(get_padding_offset)

}  // namespace fd

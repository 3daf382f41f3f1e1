#include "fd/ids.h"

namespace fd {
namespace {

constexpr const char* kOp = "get_position_ids_and_mask_encoder_batch";

struct Slots {
  int64_t count;
  const int32_t *encoder, *decoder, *this_time;

  int64_t tokens(int64_t b) const {
    if (encoder[b] > 0) return encoder[b];
    return decoder[b] > 0 ? this_time[b] : 0;
  }
};

int64_t total(const Slots& slots) {
  int64_t sum = 0;
  for (int64_t b = 0; b < slots.count; ++b) {
    if (slots.tokens(b) < 0 || slots.decoder[b] < 0)
      fail("ValueError", kOp, ": want lengths >= 0, have a negative one in slot ", b);
    sum += slots.tokens(b);
  }
  return sum;
}

template <typename P>
void number(const Slots& slots, P* position) {
  for (int64_t b = 0; b < slots.count; ++b)
    for (int64_t i = 0; i < slots.tokens(b); ++i)
      *position++ = static_cast<P>(slots.decoder[b] + i);
}

}  // namespace

void get_position_ids_and_mask_encoder_batch(Tensor seq_lens_encoder, Tensor seq_lens_decoder,
                                             Tensor seq_lens_this_time, Tensor position_ids) {
  const int64_t batch = Check{kOp, "seq_lens_encoder", seq_lens_encoder}.slot_count();
  const Slots slots{batch, lens_of(kOp, "seq_lens_encoder", seq_lens_encoder, batch),
                    lens_of(kOp, "seq_lens_decoder", seq_lens_decoder, batch),
                    lens_of(kOp, "seq_lens_this_time", seq_lens_this_time, batch)};
  Check{kOp, "position_ids", position_ids}.rank(1);
  ids_of(kOp, "position_ids", position_ids);
  const int64_t wanted = total(slots);
  if (position_ids.size(0) < wanted)
    fail("ValueError", kOp, ".position_ids: want room for ", wanted, " tokens, have ",
         position_ids.size(0));
  if (is<int64_t>(position_ids))
    number(slots, position_ids.data<int64_t>());
  else
    number(slots, position_ids.data<int32_t>());
}

FD_EXPORT(get_position_ids_and_mask_encoder_batch)

}  // namespace fd

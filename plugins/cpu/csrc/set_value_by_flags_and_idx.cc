#include "fd/ids.h"

namespace fd {
namespace {

constexpr const char* kOp = "set_value_by_flags_and_idx";

struct Slots {
  const int32_t *encoder, *decoder;
  const int64_t* step_idx;
  const bool* stopped;

  bool writes(int64_t b) const {
    return !stopped[b] && (encoder[b] != 0 || decoder[b] != 0) && step_idx[b] > 0;
  }
  int64_t column(int64_t b) const { return encoder[b] > 0 ? encoder[b] - 1 : 0; }
};

void check_slot(const Slots& s, int64_t b, int64_t history, int64_t width) {
  if (s.step_idx[b] >= history)
    fail("ValueError", kOp, ".step_idx: want < ", history, ", have ", s.step_idx[b], " in slot ",
         b);
  if (s.column(b) >= width)
    fail("ValueError", kOp, ".seq_lens_encoder: want at most ", width, ", have ", s.encoder[b],
         " in slot ", b);
}

}  // namespace

void set_value_by_flags_and_idx(Tensor pre_ids_all, Tensor input_ids, Tensor seq_lens_this_time,
                                Tensor seq_lens_encoder, Tensor seq_lens_decoder, Tensor step_idx,
                                Tensor stop_flags) {
  Check{kOp, "pre_ids_all", pre_ids_all}.rank(2);
  const int64_t batch = pre_ids_all.size(0);
  check_id_rows(kOp, "pre_ids_all", pre_ids_all, batch);
  check_id_rows(kOp, "input_ids", input_ids, batch);
  lens_of(kOp, "seq_lens_this_time", seq_lens_this_time, batch);
  const Slots slots{lens_of(kOp, "seq_lens_encoder", seq_lens_encoder, batch),
                    lens_of(kOp, "seq_lens_decoder", seq_lens_decoder, batch),
                    per_slot<int64_t>(kOp, "step_idx", step_idx, batch, "int64"),
                    per_slot<bool>(kOp, "stop_flags", stop_flags, batch, "bool")};
  for (int64_t b = 0; b < batch; ++b)
    if (slots.writes(b)) check_slot(slots, b, pre_ids_all.size(1), input_ids.size(1));
  int64_t* history = pre_ids_all.data<int64_t>();
  const int64_t* ids = input_ids.data<int64_t>();
  for (int64_t b = 0; b < batch; ++b)
    if (slots.writes(b))
      history[b * pre_ids_all.stride(0) + slots.step_idx[b]] =
          ids[b * input_ids.stride(0) + slots.column(b)];
}

FD_EXPORT(set_value_by_flags_and_idx)

}  // namespace fd

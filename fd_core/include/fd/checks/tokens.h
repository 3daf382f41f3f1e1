// The tensors of ops that move or number tokens. What lengths and indices hold is not looked at.
#pragma once
#include "fd/checks/vectors.h"

namespace fd {

// out [n, ...] gets rows of src [rows, ...].
inline void check_gather(const char* op, const Tensor& src, const Tensor& indices,
                         const Tensor& out) {
  Check{op, "indices", indices}.rank(1);
  check_indices(op, "indices", indices);
  Check{op, "out", out}.rank(src.ndim()).dim(0, indices.numel()).same_dtype(src);
  for (int i = 1; i < src.ndim(); ++i) Check{op, "out", out}.dim(i, src.size(i));
}

inline void check_embedding(const char* op, const Tensor& ids, const Tensor& weight,
                            const Tensor& out) {
  Check{op, "ids", ids}.rank(1);
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  Check{op, "out", out}.rank(2).dim(0, ids.size(0)).dim(1, weight.size(1)).inner_contiguous();
  check_indices(op, "ids", ids);
}

// The inputs of get_padding_offset; pointers of absent ones are null.
struct PaddingInputs {
  int64_t slots, input_width, draft_width;
  const int64_t *input_ids, *draft_tokens;
  const int32_t *seq_len, *encoder, *decoder;
};

inline PaddingInputs check_padding_inputs(const char* op, const Tensor& input_ids,
                                          const Tensor& seq_len, const OptTensor& draft_tokens,
                                          const OptTensor& seq_lens_encoder,
                                          const OptTensor& seq_lens_decoder) {
  Check{op, "input_ids", input_ids}.rank(2).dtype<int64_t>("int64").contiguous();
  PaddingInputs a{input_ids.size(0), input_ids.size(1), 0,       input_ids.data<int64_t>(),
                  nullptr,           nullptr,           nullptr, nullptr};
  a.seq_len = lens_of(op, "seq_len", seq_len, a.slots);
  a.encoder = lens_or_none(op, "seq_lens_encoder", seq_lens_encoder, a.slots);
  a.decoder = lens_or_none(op, "seq_lens_decoder", seq_lens_decoder, a.slots);
  if (!draft_tokens) return a;
  if (!seq_lens_encoder)
    fail("ValueError", op, ".seq_lens_encoder: want it together with draft_tokens, have None");
  const Check drafts{op, "draft_tokens", draft_tokens};
  drafts.rank(2).dim(0, a.slots).dtype<int64_t>("int64").contiguous();
  a.draft_tokens = draft_tokens.data<int64_t>(), a.draft_width = draft_tokens.size(1);
  return a;
}

// Its outputs, with room for `tokens`.
struct PaddingOutputs {
  int64_t* x;
  int32_t *owner, *cu_q, *cu_k;
};

inline PaddingOutputs check_padding_outputs(const char* op, int64_t slots, int64_t tokens,
                                            const Tensor& x_remove_padding,
                                            const Tensor& batch_id_per_token,
                                            const Tensor& cu_seqlens_q,
                                            const Tensor& cu_seqlens_k) {
  return {per_row<int64_t>(op, "x_remove_padding", x_remove_padding, tokens, "int64"),
          per_slot<int32_t>(op, "batch_id_per_token", batch_id_per_token, tokens, "int32"),
          per_slot<int32_t>(op, "cu_seqlens_q", cu_seqlens_q, slots + 1, "int32"),
          per_slot<int32_t>(op, "cu_seqlens_k", cu_seqlens_k, slots + 1, "int32")};
}

// rebuild_padding's offsets, for at least `rows` rows.
inline void check_rebuild_offsets(const char* op, const Tensor& offsets, int64_t rows,
                                  int64_t max_input_length) {
  Check{op, "output_padding_offset", offsets}.rank(1).dtype<int32_t>("int32").contiguous();
  if (offsets.size(0) < rows)
    fail("ValueError", op, ".output_padding_offset: want at least ", rows, " offsets, have ",
         offsets.size(0));
  if (max_input_length <= 0)
    fail("ValueError", op, ".max_input_length: want > 0, have ", max_input_length);
}

// Where rebuild_padding writes the rows of the tokens before the prompts' last ones.
inline void check_first_token(const char* op, const OptTensor& first, const Tensor& tmp_out,
                              int64_t slots) {
  if (!first) fail("ValueError", op, ".first_token_out: want it with enable_logprob, have None");
  Check{op, "first_token_out", first}.rank(2).dim(0, slots).dim(1, tmp_out.size(1));
  Check{op, "first_token_out", first}.same_dtype(tmp_out).inner_contiguous();
}

// Slots of a batch by four vectors.
struct MergeSlots {
  int64_t count;
  const int32_t *encoder, *decoder, *this_time, *starts;
};

inline MergeSlots check_merge(const char* op, const Tensor& encoder_res, const Tensor& decoder_res,
                              const Tensor& seq_lens_encoder, const Tensor& seq_lens_decoder,
                              const Tensor& seq_lens_this_time, const Tensor& cu_seq_q,
                              int64_t width) {
  Check{op, "encoder_res", encoder_res}.rank(2).dim(1, width);
  dispatch_float(op, "encoder_res", encoder_res, [](auto) {});
  Check{op, "decoder_res", decoder_res}.same_shape(encoder_res).same_dtype(encoder_res);
  const int64_t batch = Check{op, "seq_lens_encoder", seq_lens_encoder}.slot_count();
  return {batch, lens_of(op, "seq_lens_encoder", seq_lens_encoder, batch),
          lens_of(op, "seq_lens_decoder", seq_lens_decoder, batch),
          lens_of(op, "seq_lens_this_time", seq_lens_this_time, batch),
          lens_of(op, "cu_seq_q", cu_seq_q, batch + 1)};
}

// extract_text_token_output's slots and the three numbers about the longest of them.
struct ExtractSlots {
  int64_t count;
  const int32_t *longest, *index, *images, *this_time, *ends;
};

inline ExtractSlots check_extract(const char* op, const Tensor& max_seq_len,
                                  const Tensor& max_seq_len_index, const Tensor& mm_token_num_len,
                                  const Tensor& seq_lens_this_time, const Tensor& cu_seqlens_q,
                                  const Tensor& hidden_states, const Tensor& out) {
  const int64_t batch = Check{op, "seq_lens_this_time", seq_lens_this_time}.slot_count();
  const ExtractSlots a{batch,
                       lens_of(op, "max_seq_len", max_seq_len, 1),
                       lens_of(op, "max_seq_len_index", max_seq_len_index, 1),
                       lens_of(op, "mm_token_num_len", mm_token_num_len, 1),
                       lens_of(op, "seq_lens_this_time", seq_lens_this_time, batch),
                       lens_of(op, "cu_seqlens_q", cu_seqlens_q, batch + 1)};
  Check{op, "hidden_states", hidden_states}.rank(2).dtype<float>("float32");
  Check{op, "out", out}.rank(2).dim(0, batch).dim(1, hidden_states.size(1)).dtype<float>("float32");
  return a;
}

// Rows of experts [experts, capacity, 2 I] and how many of each count.
inline void check_masked_halves(const char* op, const Tensor& x, const Tensor& counts,
                                const Tensor& out) {
  Check{op, "x", x}.rank(3).contiguous();
  if (x.size(2) % 2 != 0)
    fail("ValueError", op, ".x: want an even last dimension, have ", shape_text(x));
  Check{op, "token_nums_per_expert", counts}.rank(1).dim(0, x.size(0));
  check_indices(op, "token_nums_per_expert", counts);
  Check{op, "out", out}.rank(3).dim(0, x.size(0)).dim(1, x.size(1)).dim(2, x.size(2) / 2);
  Check{op, "out", out}.same_dtype(x).contiguous();
}

}  // namespace fd

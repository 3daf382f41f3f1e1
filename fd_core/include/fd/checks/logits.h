// What ops that edit logits in place, [rows, vocabulary] of any float type, take beside them.
#pragma once
#include <algorithm>

#include "fd/checks/vectors.h"

namespace fd {

inline void check_logits(const char* op, const Tensor& logits) {
  Check{op, "logits", logits}.rank(2).inner_contiguous();
}

// Lists of ids per row: offsets [n + 1] int32 into ids [m] int64. Not what is in them.
inline void check_ragged(const char* op, const Tensor& logits, const Tensor& offsets,
                         const Tensor& ids) {
  check_logits(op, logits);
  per_row<int32_t>(op, "offsets", offsets, logits.size(0) + 1, "int32");
  Check{op, "ids", ids}.rank(1).dtype<int64_t>("int64").contiguous();
}

inline void check_bad_words(const char* op, const Tensor& logits, const Tensor& history,
                            const Tensor& bad_words, const Tensor& bad_words_len,
                            const Tensor& eos_token_id) {
  check_logits(op, logits);
  const int64_t n = logits.size(0);
  check_id_rows(op, "history", history, n);
  Check{op, "bad_words", bad_words}.rank(3).dim(0, n).dtype<int64_t>("int64").contiguous();
  Check{op, "bad_words_len", bad_words_len}.rank(2).dim(0, n).dim(1, bad_words.size(1));
  Check{op, "bad_words_len", bad_words_len}.dtype<int32_t>("int32").contiguous();
  check_list(op, "eos_token_id", eos_token_id);
}

// Masks of 32 tokens a word, for all rows or for those that `indices` names (its values are not
// looked at). Returns the number of rows to mask.
inline int64_t check_bitmask(const char* op, const Tensor& logits, const Tensor& bitmask,
                             int64_t vocab_size, const OptTensor& indices) {
  check_logits(op, logits);
  Check{op, "bitmask", bitmask}.rank(2).dtype<int32_t>("int32").inner_contiguous();
  const int64_t limit = std::min(logits.size(1), 32 * bitmask.size(1));
  if (vocab_size < 0 || vocab_size > limit)
    fail("ValueError", op, ".vocab_size: want 0..", limit, ", have ", vocab_size);
  const int64_t rows = logits.size(0), masks = bitmask.size(0);
  if (!indices && masks < rows)
    fail("ValueError", op, ".bitmask: want at least ", rows, " rows, have ", masks);
  if (!indices) return rows;
  Check{op, "indices", indices}.rank(1);
  check_indices(op, "indices", indices);
  return indices.numel();
}

// The tensors of get_token_penalty_multi_scores.
struct PenaltyTensors {
  Tensor pre_ids, prompt_ids, prompt_len, logits, penalty_scores, frequency_scores, presence_scores;
  Tensor temperatures, bad_tokens, bad_tokens_len, cur_len, min_len, eos_token_id;
};

inline void check_penalty_scores(const char* op, const char* arg, const Tensor& t,
                                 const PenaltyTensors& a) {
  Check{op, arg, t}.slots(a.pre_ids.size(0)).contiguous();
  if (!is<float>(t)) Check{op, arg, t}.same_dtype(a.logits);
}

inline void check_penalty(const char* op, const PenaltyTensors& a) {
  Check{op, "pre_ids", a.pre_ids}.rank(2).dtype<int64_t>("int64").inner_contiguous();
  const int64_t slots = a.pre_ids.size(0);
  check_id_rows(op, "prompt_ids", a.prompt_ids, slots);
  per_slot<int64_t>(op, "prompt_len", a.prompt_len, slots, "int64");
  check_logits(op, a.logits);
  check_rows_in_slots(op, "logits", a.logits, slots);
  check_penalty_scores(op, "penalty_scores", a.penalty_scores, a);
  check_penalty_scores(op, "frequency_scores", a.frequency_scores, a);
  check_penalty_scores(op, "presence_scores", a.presence_scores, a);
  per_slot<float>(op, "temperatures", a.temperatures, slots, "float32");
  check_id_rows(op, "bad_tokens", a.bad_tokens, slots);
  per_slot<int64_t>(op, "bad_tokens_len", a.bad_tokens_len, slots, "int64");
  per_slot<int64_t>(op, "cur_len", a.cur_len, slots, "int64");
  per_slot<int64_t>(op, "min_len", a.min_len, slots, "int64");
  check_list(op, "eos_token_id", a.eos_token_id);
}

}  // namespace fd

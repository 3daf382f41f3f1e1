// Rows of probabilities or logits, float32, and what ops choose from them by.
#pragma once
#include "fd/checks/vectors.h"

namespace fd {

inline void check_float_rows(const char* op, const char* arg, const Tensor& t) {
  Check{op, arg, t}.rank(2).dtype<float>("float32").inner_contiguous();
}

// Something to choose from in every row.
inline void check_columns(const char* op, const char* arg, const Tensor& t) {
  if (t.size(0) > 0 && t.size(1) == 0)
    fail("ValueError", op, ".", arg, ": want at least one column, have ", shape_text(t));
}

// Those to renormalise, what decides row by row which entries stay (returned), and the result.
template <typename T>
T* check_renormalised(const char* op, const Tensor& probs, const char* arg, const Tensor& by_row,
                      const char* dtype, const Tensor& renorm_probs) {
  check_float_rows(op, "probs", probs);
  T* values = per_slot<T>(op, arg, by_row, probs.size(0), dtype);
  Check{op, "renorm_probs", renorm_probs}.same_shape(probs).dtype<float>("float32");
  Check{op, "renorm_probs", renorm_probs}.inner_contiguous();
  return values;
}

// Row by row: how to choose (0: no limit), with which random bits, and where the answer goes.
// Pointers that an op does not have are null.
struct RowChoices {
  const int64_t* top_k;
  const float *top_p, *min_p;
  const int64_t *seeds, *positions;
  int64_t* out;
};

inline RowChoices check_choices(const char* op, int64_t n, const Tensor& top_k, const Tensor& top_p,
                                const Tensor& min_p, const Tensor& seed, const Tensor& position,
                                const Tensor& out) {
  return {per_row<int64_t>(op, "top_k", top_k, n, "int64"),
          per_row<float>(op, "top_p", top_p, n, "float32"),
          per_row<float>(op, "min_p", min_p, n, "float32"),
          per_row<int64_t>(op, "seed", seed, n, "int64"),
          per_row<int64_t>(op, "position", position, n, "int64"),
          per_row<int64_t>(op, "out", out, n, "int64")};
}

// Those of rejection_top_p_sampling: one seed for all rows, or `row_seeds` with `positions`.
inline RowChoices check_rejection(const char* op, const Tensor& probs, const Tensor& top_p,
                                  const OptTensor& top_k, int64_t seed, const OptTensor& row_seeds,
                                  const OptTensor& positions, const Tensor& samples) {
  check_float_rows(op, "probs", probs);
  const int64_t n = probs.size(0);
  const float* p = per_slot<float>(op, "top_p", top_p, n, "float32");
  const RowChoices a{per_slot_or_none<int64_t>(op, "top_k", top_k, n, "int64"),
                     p,
                     nullptr,
                     per_slot_or_none<int64_t>(op, "row_seeds", row_seeds, n, "int64"),
                     per_slot_or_none<int64_t>(op, "positions", positions, n, "int64"),
                     per_slot<int64_t>(op, "samples", samples, n, "int64")};
  if (a.seeds == nullptr && seed < 0)
    fail("ValueError", op, ".seed: want >= 0 (the caller draws one for -1), have ", seed);
  if ((a.seeds == nullptr) != (a.positions == nullptr))
    fail("ValueError", op, ".positions: want it together with row_seeds, or neither");
  check_columns(op, "probs", probs);
  return a;
}

inline void check_top_logprobs(const char* op, const Tensor& logits, const Tensor& token_ids,
                               int64_t k, const Tensor& token_logprob, const Tensor& rank,
                               const Tensor& ids, const Tensor& logprobs) {
  check_float_rows(op, "logits", logits);
  const int64_t n = logits.size(0), width = logits.size(1);
  if (k < 0 || k > width) fail("ValueError", op, ".k: want 0..", width, ", have ", k);
  per_row<int64_t>(op, "token_ids", token_ids, n, "int64");
  per_row<float>(op, "token_logprob", token_logprob, n, "float32");
  per_row<int64_t>(op, "rank", rank, n, "int64");
  Check{op, "ids", ids}.rank(2).dim(0, n).dim(1, k).dtype<int64_t>("int64").contiguous();
  Check{op, "logprobs", logprobs}.rank(2).dim(0, n).dim(1, k).dtype<float>("float32").contiguous();
}

}  // namespace fd

// Vectors with an entry for each row or slot of a call, and lists of ids.
#pragma once
#include "fd/check.h"

namespace fd {

// One value per row, [n].
template <typename T>
T* per_row(const char* op, const char* arg, const Tensor& t, int64_t n, const char* dtype) {
  Check{op, arg, t}.rank(1).dim(0, n).dtype<T>(dtype).contiguous();
  return t.data<T>();
}

// One value per slot, [n] or [n, 1].
template <typename T>
T* per_slot(const char* op, const char* arg, const Tensor& t, int64_t n, const char* dtype) {
  Check{op, arg, t}.slots(n).dtype<T>(dtype).contiguous();
  return t.data<T>();
}

// The same where it may be absent.
template <typename T>
T* per_slot_or_none(const char* op, const char* arg, const OptTensor& t, int64_t n,
                    const char* dtype) {
  return t ? per_slot<T>(op, arg, t, n, dtype) : nullptr;
}

// The number of slots by a vector of T with an entry for each.
template <typename T>
int64_t count_slots(const char* op, const char* arg, const Tensor& t, const char* dtype) {
  return Check{op, arg, t}.dtype<T>(dtype).contiguous().slot_count();
}

// Lengths of `slots` sequences, int32.
inline const int32_t* lens_of(const char* op, const char* arg, const Tensor& t, int64_t slots) {
  return per_slot<int32_t>(op, arg, t, slots, "int32");
}

inline const int32_t* lens_or_none(const char* op, const char* arg, const OptTensor& t,
                                   int64_t slots) {
  return t ? lens_of(op, arg, t, slots) : nullptr;
}

// Token ids of any shape.
inline void check_list(const char* op, const char* arg, const Tensor& t) {
  Check{op, arg, t}.dtype<int64_t>("int64").contiguous();
}

inline void check_not_empty(const char* op, const char* arg, const Tensor& t) {
  if (t.numel() == 0) fail("ValueError", op, ".", arg, ": want at least one id, have none");
}

// Token ids of `rows` rows, whose stride is free.
inline void check_id_rows(const char* op, const char* arg, const Tensor& t, int64_t rows) {
  Check{op, arg, t}.rank(2).dim(0, rows).dtype<int64_t>("int64").inner_contiguous();
}

// Indices, int32 or int64.
inline void check_indices(const char* op, const char* arg, const Tensor& t) {
  Check{op, arg, t}.contiguous();
  if (!is<int32_t>(t) && !is<int64_t>(t))
    fail("TypeError", op, ".", arg, ": want dtype int32 or int64, have ", dtype_text(t));
}

// Rows of a step, at most one for each slot.
inline void check_rows_in_slots(const char* op, const char* arg, const Tensor& t, int64_t slots) {
  if (t.size(0) > slots)
    fail("ValueError", op, ".", arg, ": want at most ", slots, " rows (slots), have ",
         shape_text(t));
}

}  // namespace fd

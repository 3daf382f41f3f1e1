// Index vectors, checked before use.
#pragma once
#include "fd/checks/vectors.h"

namespace fd {

// A contiguous vector of int32 or int64 indices.
struct Ids {
  const int32_t* narrow = nullptr;
  const int64_t* wide = nullptr;
  int64_t count = 0;

  int64_t operator[](int64_t i) const { return wide != nullptr ? wide[i] : narrow[i]; }
};

inline Ids ids_of(const char* op, const char* arg, const Tensor& t) {
  check_indices(op, arg, t);
  if (is<int32_t>(t)) return {t.data<int32_t>(), nullptr, t.numel()};
  return {nullptr, t.data<int64_t>(), t.numel()};
}

// Every index in [low, high); ValueError names the first one outside and its position.
inline const Ids& check_range(const char* op, const char* arg, const Ids& ids, int64_t low,
                              int64_t high) {
  for (int64_t i = 0; i < ids.count; ++i)
    if (ids[i] < low || ids[i] >= high)
      fail("ValueError", op, ".", arg, ": want indices in [", low, ", ", high, "), have ", ids[i],
           " at position ", i);
  return ids;
}

}  // namespace fd

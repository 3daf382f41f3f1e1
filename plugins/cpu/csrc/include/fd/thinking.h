// Checks shared by the ops that limit the length of a reasoning part.
#pragma once
#include <algorithm>

#include "fd/check.h"

namespace fd {

// Per-slot vectors, [n] or [n, 1].
template <typename T>
T* slots(const char* op, const char* arg, Tensor t, int64_t n, const char* dtype) {
  Check{op, arg, t}.slots(n).dtype<T>(dtype).contiguous();
  return t.data<T>();
}

struct Ids {
  const int64_t* ids;
  int64_t count;
  bool has(int64_t id) const { return std::find(ids, ids + count, id) != ids + count; }
};

inline Ids id_list(const char* op, const char* arg, Tensor t) {
  Check{op, arg, t}.dtype<int64_t>("int64").contiguous();
  return {t.data<int64_t>(), t.numel()};
}

}  // namespace fd

// Lists of ids that the ops search which limit the length of a reasoning part.
#pragma once
#include <algorithm>

#include "fd/checks/thinking.h"

namespace fd {

struct Ids {
  const int64_t* ids;
  int64_t count;
  bool has(int64_t id) const { return std::find(ids, ids + count, id) != ids + count; }
};

inline Ids id_list(const char* op, const char* arg, Tensor t) {
  check_list(op, arg, t);
  return {t.data<int64_t>(), t.numel()};
}

}  // namespace fd

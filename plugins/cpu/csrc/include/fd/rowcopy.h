// Copies of whole rows of any element type.
#pragma once
#include <cstring>

#include "fd/check.h"

namespace fd {

inline int64_t item_bytes(const Tensor& t) { return t.dtype().bits * t.dtype().lanes / 8; }

// A tensor [rows, ...] as rows of adjacent bytes.
struct ByteRows {
  char* base;
  int64_t count, bytes, stride;

  char* row(int64_t i) const { return base + i * stride; }
  void copy_from(int64_t to, const ByteRows& src, int64_t from) const {
    std::memcpy(row(to), src.row(from), static_cast<size_t>(bytes));
  }
  void zero(int64_t i) const { std::memset(row(i), 0, static_cast<size_t>(bytes)); }
};

// Rows may be `stride(0)` apart; each row itself is contiguous.
inline ByteRows byte_rows(const char* op, const char* arg, const Tensor& t) {
  if (t.ndim() < 1) Check{op, arg, t}.rank(1);
  int64_t step = 1;
  for (int d = t.ndim() - 1; d > 0; --d) {
    if (t.numel() > 0 && t.size(d) != 1 && t.stride(d) != step)
      fail("ValueError", op, ".", arg, ": want contiguous rows, have stride ", t.stride(d),
           " in dimension ", d);
    step *= t.size(d);
  }
  const int64_t item = item_bytes(t);
  return {t.data<char>(), t.size(0), step * item, t.stride(0) * item};
}

}  // namespace fd

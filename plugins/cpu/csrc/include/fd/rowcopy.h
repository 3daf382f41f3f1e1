// Copies of whole rows of any element type.
#pragma once
#include <cstring>

#include "fd/checks/rows.h"

namespace fd {

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

inline ByteRows byte_rows(const char* op, const char* arg, const Tensor& t) {
  const RowBytes rows = row_bytes(op, arg, t);
  return {rows.base, rows.count, rows.bytes, rows.stride};
}

}  // namespace fd

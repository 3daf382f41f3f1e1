// Host side of the row copies.
#pragma once
#include "fd/checks/rows.h"
#include "fd/cuda.h"
#include "fd/rowmove.cuh"

namespace fd {

inline ByteRows byte_rows(const char* op, const char* arg, const Tensor& t) {
  const RowBytes rows = row_bytes(op, arg, t);
  return {rows.base, rows.count, rows.bytes, rows.stride};
}

// The widest word (16, 4, 2 or 1 bytes) in which all of these rows can be moved.
inline int word_bytes(std::initializer_list<ByteRows> all) {
  uintptr_t bits = 0;
  for (const ByteRows& rows : all)
    bits |= reinterpret_cast<uintptr_t>(rows.base) | static_cast<uintptr_t>(rows.bytes) |
            static_cast<uintptr_t>(rows.stride);
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : bits % 2 == 0 ? 2 : 1;
}

template <typename Word, typename Map>
void move_rows_as(const Launch& on, const Map& map, int64_t rows, int64_t bytes) {
  const int64_t words = bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t each = kWordsPerThread * kMoveThreads, chunks = (words + each - 1) / each;
  run_overlapped(on, move_rows<Word, Map>, dim3(rows * chunks), dim3(kMoveThreads), 0, map, words,
                 chunks);
}

// `involved`: every tensor's rows that `map` may name.
template <typename Map>
void move_all(const Launch& on, const Map& map, int64_t rows, int64_t bytes,
              std::initializer_list<ByteRows> involved) {
  switch (word_bytes(involved)) {
    case 16:
      return move_rows_as<uint4>(on, map, rows, bytes);
    case 4:
      return move_rows_as<uint32_t>(on, map, rows, bytes);
    case 2:
      return move_rows_as<uint16_t>(on, map, rows, bytes);
    default:
      return move_rows_as<uint8_t>(on, map, rows, bytes);
  }
}

}  // namespace fd

// Host side of the row copies.
#pragma once
#include "fd/cuda.h"
#include "fd/rowmove.cuh"

namespace fd {

inline int64_t item_bytes(const Tensor& t) { return t.dtype().bits * t.dtype().lanes / 8; }

// A tensor [rows, ...]; rows may be `stride(0)` apart, each row itself is contiguous.
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

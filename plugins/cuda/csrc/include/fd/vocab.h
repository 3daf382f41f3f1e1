// Host side of the ops over rows as long as a vocabulary.
#pragma once
#include "fd/checks/sampling.h"
#include "fd/vocab_parts.cuh"
#include "fd/workspace.h"

namespace fd {

// Rows of at least one entry, at most 2^31 - 2^16.
inline void check_vocab(const char* op, const char* arg, const Tensor& rows) {
  Check{op, arg, rows}.rank(2).inner_contiguous();
  check_columns(op, arg, rows);
  if (rows.size(1) > (int64_t{1} << 31) - (1 << 16))
    fail("ValueError", op, ".", arg, ": want at most 2^31 - 2^16 columns, have ", shape_text(rows));
}

inline bool rows_aligned(const Tensor& t, size_t item) {
  return aligned16(t.data<char>()) && (t.size(0) < 2 || t.stride(0) * item % 16 == 0);
}

inline VocabRows vocab_rows(const Tensor& t) {
  return {t.data<float>(), t.stride(0), t.size(1), rows_aligned(t, sizeof(float))};
}

inline dim3 vocab_grid(const Tensor& t) {
  return dim3(static_cast<unsigned>(t.size(0) * segments_of(t.size(1))));
}

// Memory for `parts` and, unless told otherwise, `groups`; `extra` bytes more for the op itself.
inline PartsJob parts_job(const Launch& on, const Tensor& t, bool groups = true,
                          int64_t extra = 0) {
  const int64_t parts = t.size(0) * segments_of(t.size(1));
  const int64_t head = parts * int64_t{sizeof(RowPart)};
  const int64_t middle = groups ? parts * kSegmentThreads * int64_t{sizeof(float)} : 0;
  char* memory = static_cast<char*>(
      workspace(on, Scratch::kVocabParts, static_cast<size_t>(head + middle + extra)));
  return {vocab_rows(t),
          nullptr,
          nullptr,
          reinterpret_cast<RowPart*>(memory),
          groups ? reinterpret_cast<float*>(memory + head) : nullptr,
          memory + head + middle};
}

template <bool Softmax>
void run_parts(const Launch& on, const Tensor& t, const PartsJob& job) {
  run_overlapped(on, vocab_parts<Softmax>, vocab_grid(t), dim3(kSegmentThreads), 0, job);
}

// Blocks that may share a row where clusters exist.
constexpr unsigned kLargestTeam = 8;

// Blocks that share a row: as many as fit into half of the device, for rows that need only one
// block are slowed down by others that share its caches.
inline unsigned team_of(const Launch& on, int64_t rows) {
  unsigned size = 1;
  while (size < kLargestTeam && on.sm() >= 90 && 4 * size * rows <= on.processors()) size *= 2;
  return size;
}

// A team of `threads` each for every row, which may start while the kernel before ends.
template <typename... Params, typename... Args>
void run_teams(const Launch& on, void (*kernel)(Params...), int64_t rows, int threads,
               Args... args) {
  const unsigned size = team_of(on, rows);
  cudaLaunchConfig_t config = launch_config(on, dim3(static_cast<unsigned>(rows) * size),
                                            dim3(static_cast<unsigned>(threads)), 0);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = size;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes, config.numAttrs = on.sm() < 90 ? 0 : size > 1 ? 2 : 1;
  launch(on, kernel, config, args...);
}

}  // namespace fd

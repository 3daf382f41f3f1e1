// Host side of the stable counting sort.
#pragma once
#include "fd/cuda.h"
#include "fd/slot_sort.cuh"
#include "fd/workspace.h"

namespace fd {

constexpr int64_t kSortSharedBytes = 40 << 10, kSortChunk = 512;
constexpr int64_t kSortMaxGroups = kSortSharedBytes / int64_t{sizeof(int)};

// `sort` needs ids, wide, lowest, n, groups and padding; `begins` where the op has no memory for
// it.
template <typename Sink>
void run_slot_sort(const Launch& on, SlotSort sort, const Sink& sink) {
  if (sort.groups > kSortMaxGroups)
    fail("ValueError", on.op, ": want at most ", kSortMaxGroups, " experts, have ", sort.groups);
  const int64_t fitting = kSortSharedBytes / (int64_t{sizeof(int)} * sort.groups);
  const int64_t warps = std::min<int64_t>(kSortWarps, fitting);
  const bool small = sort.n <= std::min<int64_t>(8192, warps * kSortChunk);
  sort.chunk =
      small ? std::max<int64_t>(kWarp, ((sort.n + warps - 1) / warps + 31) / 32 * 32) : kSortChunk;
  sort.chunks = static_cast<int>((sort.n + sort.chunk - 1) / sort.chunk);
  const int64_t begins = (int64_t{sort.groups} + 1) * int64_t{sizeof(int64_t)};
  const int64_t counts = int64_t{sort.chunks} * sort.groups * int64_t{sizeof(int)};
  char* memory =
      static_cast<char*>(workspace(on, Scratch::kSlotSort, static_cast<size_t>(begins + counts)));
  sort.begins = reinterpret_cast<int64_t*>(memory);
  sort.counts = reinterpret_cast<int*>(memory + begins);
  if (small)
    return run_overlapped(on, slot_sort_block<Sink>, dim3(1), dim3(kSortThreads),
                          static_cast<size_t>(counts), sort, sink);
  const size_t shared = static_cast<size_t>(sort.groups) * sizeof(int);
  const dim3 grid(static_cast<unsigned>(sort.chunks));
  run(on, slot_sort_count<Sink>, grid, dim3(kWarp), shared, sort);
  run(on, slot_sort_scan<Sink>, dim3(1), dim3(kSortThreads), 0, sort, sink);
  run(on, slot_sort_place<Sink>, grid, dim3(kWarp), shared, sort, sink);
}

}  // namespace fd

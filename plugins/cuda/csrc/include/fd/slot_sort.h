// Host side of the stable counting sort.
#pragma once
#include "fd/cuda.h"
#include "fd/slot_sort.cuh"
#include "fd/workspace.h"

namespace fd {

constexpr int64_t kSortSharedBytes = 40 << 10, kSortChunk = 512;
constexpr int64_t kSortMaxGroups = kSortSharedBytes / int64_t{sizeof(int)};

// `sort` needs ids, wide, lowest, n, groups and padding; what is left is filled in. `shared`: bytes
// of shared memory of the one block that sorts few slots, 0 for many.
inline SlotSort plan_slot_sort(const Launch& on, SlotSort sort, size_t* shared) {
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
  *shared = small ? static_cast<size_t>(std::max<int64_t>(counts, 16)) : 0;
  return sort;
}

template <typename Sink>
void run_slot_sort(const Launch& on, const SlotSort& slots, const Sink& sink) {
  size_t shared = 0;
  const SlotSort sort = plan_slot_sort(on, slots, &shared);
  if (shared != 0)
    return run_overlapped(on, slot_sort_block<Sink>, dim3(1), dim3(kSortThreads), shared, sort,
                          sink);
  shared = static_cast<size_t>(sort.groups) * sizeof(int);
  const dim3 grid(static_cast<unsigned>(sort.chunks));
  run(on, slot_sort_count<Sink>, grid, dim3(kWarp), shared, sort);
  run(on, slot_sort_scan<Sink>, dim3(1), dim3(kSortThreads), 0, sort, sink);
  run(on, slot_sort_place<Sink>, grid, dim3(kWarp), shared, sort, sink);
}

}  // namespace fd

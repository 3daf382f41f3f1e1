// Stable counting sort of slots by group: chunks of slots, each walked by one warp.
//
// counts[chunk, group] first holds how many slots of a chunk are in a group, then how many of the
// group lie in earlier chunks, and serves the chunk's warp as its cursors. Few slots: one block
// does all with counts in shared memory; many: three kernels with counts in device memory.
#pragma once
#include "fd/overlap.cuh"
#include "fd/reduce.cuh"

namespace fd {

constexpr int kSortThreads = 1024, kSortWarps = kSortThreads / kWarp;

struct SlotSort {
  const void* ids;
  bool wide;   // int64 ids, else int32
  int lowest;  // the id of group 0
  int64_t n;
  int groups, chunks;
  int64_t chunk;    // slots of a chunk, a multiple of 32
  int64_t padding;  // each group starts at a multiple of it
  int* counts;      // [chunks, groups]
  int64_t* begins;  // [groups + 1] where groups start; the end

  // The slot's group, -1 for ids outside (the host cannot see them) and beyond the slots.
  __device__ __forceinline__ int group(int64_t slot) const {
    if (slot >= n) return -1;
    const int64_t id =
        wide ? static_cast<const int64_t*>(ids)[slot] : static_cast<const int*>(ids)[slot];
    const int64_t at = id - lowest;
    return at >= 0 && at < groups ? static_cast<int>(at) : -1;
  }
};

// A warp counts its chunk. `counts`: of the chunk, zero.
__device__ __forceinline__ void sort_count(const SlotSort& sort, int64_t chunk, int* counts) {
  const int64_t end = min((chunk + 1) * sort.chunk, sort.n);
  for (int64_t i = chunk * sort.chunk + threadIdx.x % kWarp; i < end; i += kWarp) {
    const int g = sort.group(i);
    if (g >= 0) atomicAdd(&counts[g], 1);
  }
}

// A block of kSortThreads: from counts of chunks to those of earlier chunks, and to the groups'
// begins.
inline __device__ void sort_scan(const SlotSort& sort, int* counts, int64_t* begins) {
  __shared__ int64_t warps[kSortWarps], before;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int g = warp; g < sort.groups; g += kSortWarps) {
    int total = 0;
    for (int first = 0; first < sort.chunks; first += kWarp) {
      int* own = counts + int64_t{first + lane} * sort.groups + g;
      const int count = first + lane < sort.chunks ? *own : 0;
      int sum = count;
#pragma unroll
      for (int d = 1; d < kWarp; d *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += below;
      }
      if (first + lane < sort.chunks) *own = total + sum - count;
      total += __shfl_sync(0xffffffffu, sum, kWarp - 1);
    }
    if (lane == 0) begins[g] = total;
  }
  if (threadIdx.x == 0) before = 0;
  __syncthreads();
  for (int first = 0; first < sort.groups; first += kSortThreads) {
    const int g = first + static_cast<int>(threadIdx.x);
    const int64_t size = g < sort.groups ? begins[g] : 0;
    const int64_t padded = (size + sort.padding - 1) / sort.padding * sort.padding;
    int64_t sum = padded;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const int64_t below = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += below;
    }
    if (lane == kWarp - 1) warps[warp] = sum;
    __syncthreads();
    int64_t start = before + sum - padded;
    for (int w = 0; w < warp; ++w) start += warps[w];
    if (g < sort.groups) begins[g] = start;
    __syncthreads();
    if (threadIdx.x == kSortThreads - 1) before = start + padded;
    __syncthreads();
  }
  if (threadIdx.x == 0) begins[sort.groups] = before;
  __syncthreads();
}

// A warp places its chunk: f(slot, group, place). `cursors`: of the chunk; they move.
template <typename F>
__device__ __forceinline__ void sort_place(const SlotSort& sort, int64_t chunk, int* cursors,
                                           const int64_t* begins, F&& f) {
  const int lane = threadIdx.x % kWarp;
  const int64_t end = min((chunk + 1) * sort.chunk, sort.n);
  for (int64_t first = chunk * sort.chunk; first < end; first += kWarp) {
    const int g = sort.group(first + lane);
    const unsigned peers = __match_any_sync(0xffffffffu, g);
    const int lower = __popc(peers & ((1u << lane) - 1));
    const int at = g >= 0 ? cursors[g] : 0;
    __syncwarp();
    if (g >= 0 && lower == 0) cursors[g] = at + __popc(peers);
    __syncwarp();
    if (g >= 0) f(first + lane, g, begins[g] + at + lower);
  }
}

// Everything in one block of kSortThreads; `memory`: counts of all chunks, in shared memory.
template <typename F>
__device__ void sort_in_block(const SlotSort& sort, int* memory, F&& f) {
  for (int i = threadIdx.x; i < sort.chunks * sort.groups; i += kSortThreads) memory[i] = 0;
  __syncthreads();
  const int64_t chunk = threadIdx.x / kWarp;
  int* own = memory + chunk * sort.groups;
  if (chunk < sort.chunks) sort_count(sort, chunk, own);
  __syncthreads();
  sort_scan(sort, memory, sort.begins);
  if (chunk < sort.chunks) sort_place(sort, chunk, own, sort.begins, f);
}

// One warp a block and a chunk; shared memory for the counts.
__device__ __forceinline__ void sort_count_chunk(const SlotSort& sort, int* shared) {
  for (int g = threadIdx.x; g < sort.groups; g += kWarp) shared[g] = 0;
  __syncwarp();
  sort_count(sort, blockIdx.x, shared);
  __syncwarp();
  int* counts = sort.counts + int64_t{blockIdx.x} * sort.groups;
  for (int g = threadIdx.x; g < sort.groups; g += kWarp) counts[g] = shared[g];
}

template <typename F>
__device__ __forceinline__ void sort_place_chunk(const SlotSort& sort, int* shared, F&& f) {
  const int* counts = sort.counts + int64_t{blockIdx.x} * sort.groups;
  for (int g = threadIdx.x; g < sort.groups; g += kWarp) shared[g] = counts[g];
  __syncwarp();
  sort_place(sort, blockIdx.x, shared, sort.begins, f);
}

// The one kernel and the three, for an op's `Sink`: finish(sort) by every thread of the one block
// that scans, once `begins` is known; place(slot, group, place) for each slot.
template <typename Sink>
__global__ void __launch_bounds__(kSortThreads) slot_sort_block(SlotSort sort, Sink sink) {
  extern __shared__ int sort_memory[];
  wait_for_inputs();
  sort_in_block(sort, sort_memory,
                [&](int64_t slot, int group, int64_t place) { sink.place(slot, group, place); });
  sink.finish(sort);
}

template <typename Sink>
__global__ void slot_sort_count(SlotSort sort) {
  extern __shared__ int sort_memory[];
  sort_count_chunk(sort, sort_memory);
}

template <typename Sink>
__global__ void __launch_bounds__(kSortThreads) slot_sort_scan(SlotSort sort, Sink sink) {
  sort_scan(sort, sort.counts, sort.begins);
  sink.finish(sort);
}

template <typename Sink>
__global__ void slot_sort_place(SlotSort sort, Sink sink) {
  extern __shared__ int sort_memory[];
  sort_place_chunk(sort, sort_memory,
                   [&](int64_t slot, int group, int64_t place) { sink.place(slot, group, place); });
}

}  // namespace fd

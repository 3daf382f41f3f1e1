// Index vectors.
//
// What they hold is known on the device only: kernels follow no index that leaves its tensor, and
// leave out what it stands for. With FD_CUDA_BLOCKING=1 the host reads indices before the launch
// and refuses those that are out of range, as the CPU's kernels do.
#pragma once
#include <vector>

#include "fd/checks/vectors.h"
#include "fd/cuda.h"
#include "fd/ids.cuh"

namespace fd {

inline Ids ids_of(const char* op, const char* arg, const Tensor& t) {
  check_indices(op, arg, t);
  if (is<int32_t>(t)) return {t.data<int32_t>(), nullptr, t.numel()};
  return {nullptr, t.data<int64_t>(), t.numel()};
}

// Whether the host may read device memory now: wanted, and no graph is being captured.
inline bool reads_data(const Launch& on) { return blocking() && !capturing(on); }

// A host copy, after everything queued so far.
template <typename T>
std::vector<T> host_copy(const Launch& on, const T* data, int64_t count) {
  std::vector<T> out(count);
  if (count == 0) return out;
  FD_CUDA_CHECK(on.op, cudaMemcpyAsync(out.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost,
                                       on.stream));
  FD_CUDA_CHECK(on.op, cudaStreamSynchronize(on.stream));
  return out;
}

inline std::vector<int64_t> host_ids(const Launch& on, const Ids& ids) {
  if (ids.wide != nullptr) return host_copy(on, ids.wide, ids.count);
  const std::vector<int32_t> narrow = host_copy(on, ids.narrow, ids.count);
  return {narrow.begin(), narrow.end()};
}

// With FD_CUDA_BLOCKING=1: every index in [low, high); ValueError names the first one outside.
inline void check_range(const Launch& on, const char* arg, const Ids& ids, int64_t low,
                        int64_t high) {
  if (!reads_data(on)) return;
  const std::vector<int64_t> all = host_ids(on, ids);
  for (size_t i = 0; i < all.size(); ++i)
    if (all[i] < low || all[i] >= high)
      fail("ValueError", on.op, ".", arg, ": want indices in [", low, ", ", high, "), have ",
           all[i], " at position ", i);
}

}  // namespace fd

#include "fd/edit_rows.cuh"

namespace fd {

struct BitmaskArgs {
  const int32_t* masks;
  int64_t step, vocab;
  const void* indices;  // null: every row
  bool narrow;          // int32 indices
  int64_t limit;        // rows that have both logits and mask

  __device__ __forceinline__ int64_t row(int64_t i) const {
    if (indices == nullptr) return i;
    return narrow ? static_cast<const int32_t*>(indices)[i]
                  : static_cast<const int64_t*>(indices)[i];
  }
};

// Whether a row allows any token; by every thread of the block.
__device__ __forceinline__ bool bitmask_any(const int32_t* mask, int64_t vocab) {
  const int64_t words = (vocab + 31) / 32;
  for (int64_t first = 0; first < words; first += kEditThreads) {
    const int64_t w = first + threadIdx.x;
    uint32_t bits = w < words ? static_cast<uint32_t>(mask[w]) : 0;
    if (w + 1 == words && vocab % 32 != 0) bits &= (1u << vocab % 32) - 1;
    if (__syncthreads_or(bits != 0)) return true;
  }
  return false;
}

template <typename T>
__global__ void __launch_bounds__(kEditThreads)
    apply_token_bitmask_rows(EditRows<T> rows, BitmaskArgs a) {
  const int64_t row = a.row(rows.row());
  if (row < 0 || row >= a.limit) return;  // the host cannot see the indices
  const int32_t* mask = a.masks + row * a.step;
  const int64_t end = min(rows.end(), a.vocab);
  if (rows.begin() >= end || !bitmask_any(mask, a.vocab)) return;
  T* x = rows.at(row);
  for (int64_t i = rows.begin() + threadIdx.x; i < end; i += kEditThreads)
    if ((static_cast<uint32_t>(mask[i / 32]) >> i % 32 & 1u) == 0) x[i] = from_float<T>(-INFINITY);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/edit_rows.h"

namespace fd {

void apply_token_bitmask(Tensor logits, Tensor bitmask, int64_t vocab_size, OptTensor indices) {
  const char* op = "apply_token_bitmask";
  const int64_t n = check_bitmask(op, logits, bitmask, vocab_size, indices);
  const BitmaskArgs a{bitmask.data<int32_t>(),
                      bitmask.stride(0),
                      vocab_size,
                      indices ? indices.data<char>() : nullptr,
                      indices && is<int32_t>(indices),
                      std::min(logits.size(0), bitmask.size(0))};
  same_device(op, logits, {bitmask, indices});
  dispatch_float(op, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    const EditRows<T> rows = edit_rows<T>(logits);
    run(launch_on(op, logits), apply_token_bitmask_rows<T>, edit_grid(rows, n), dim3(kEditThreads),
        0, rows, a);
  });
}
FD_EXPORT(apply_token_bitmask)

}  // namespace fd
#endif

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

// The number of rows to mask.
inline int64_t bitmask_rows(const char* op, BitmaskArgs& a, OptTensor indices, int64_t rows,
                            int64_t masks) {
  a.limit = std::min(rows, masks);
  if (!indices && masks < rows)
    fail("ValueError", op, ".bitmask: want at least ", rows, " rows, have ", masks);
  if (!indices) return rows;
  Check{op, "indices", indices}.rank(1).contiguous();
  a.narrow = is<int32_t>(indices);
  if (!a.narrow) Check{op, "indices", indices}.dtype<int64_t>("int32 or int64");
  a.indices = indices.data<char>();
  return indices.numel();
}

void apply_token_bitmask(Tensor logits, Tensor bitmask, int64_t vocab_size, OptTensor indices) {
  const char* op = "apply_token_bitmask";
  Check{op, "logits", logits}.rank(2).inner_contiguous();
  Check{op, "bitmask", bitmask}.rank(2).dtype<int32_t>("int32").inner_contiguous();
  const int64_t limit = std::min(logits.size(1), 32 * bitmask.size(1));
  if (vocab_size < 0 || vocab_size > limit)
    fail("ValueError", op, ".vocab_size: want 0..", limit, ", have ", vocab_size);
  BitmaskArgs a{bitmask.data<int32_t>(), bitmask.stride(0), vocab_size, nullptr, false, 0};
  const int64_t n = bitmask_rows(op, a, indices, logits.size(0), bitmask.size(0));
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

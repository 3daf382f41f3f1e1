#include "fd/edit_rows.cuh"

namespace fd {

template <typename T>
__global__ void __launch_bounds__(kEditThreads)
    apply_allowed_tokens_rows(EditRows<T> rows, RaggedIds lists) {
  __shared__ uint32_t allowed[kEditSpan / 32];
  const int64_t row = rows.row(), begin = rows.begin(), end = rows.end();
  for (int i = threadIdx.x; i < kEditSpan / 32; i += kEditThreads) allowed[i] = 0;
  __syncthreads();
  bool any = false;
  for (int64_t i = lists.offset(row) + threadIdx.x; i < lists.offset(row + 1); i += kEditThreads) {
    const int64_t id = lists.ids[i], at = id - begin;
    any |= id >= 0 && id < rows.width;
    if (id >= begin && id < end) atomicOr(&allowed[at / 32], 1u << at % 32);
  }
  if (!__syncthreads_or(any)) return;
  T* x = rows.at(row);
  for (int64_t i = begin + threadIdx.x; i < end; i += kEditThreads)
    if ((allowed[(i - begin) / 32] >> (i - begin) % 32 & 1u) == 0) x[i] = from_float<T>(-INFINITY);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/edit_rows.h"

namespace fd {

void apply_allowed_tokens(Tensor logits, Tensor offsets, Tensor ids) {
  const char* op = "apply_allowed_tokens";
  const RaggedIds lists = ragged_ids(op, logits, offsets, ids);
  same_device(op, logits, {offsets, ids});
  dispatch_float(op, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    const EditRows<T> rows = edit_rows<T>(logits);
    run(launch_on(op, logits), apply_allowed_tokens_rows<T>, edit_grid(rows, logits.size(0)),
        dim3(kEditThreads), 0, rows, lists);
  });
}
FD_EXPORT(apply_allowed_tokens)

}  // namespace fd
#endif

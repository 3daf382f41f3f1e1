#include "fd/edit_rows.cuh"

namespace fd {

constexpr int kBiasTile = 128;

// One block a row. Entries of one id are added in order: tile by tile, and within a tile by the
// thread of the first of them.
template <typename T>
__global__ void __launch_bounds__(kBiasTile)
    apply_logit_bias_rows(EditRows<T> rows, RaggedIds lists, const float* values) {
  __shared__ int64_t ids[kBiasTile];
  __shared__ float added[kBiasTile];
  const int64_t row = blockIdx.x, last = lists.offset(row + 1);
  const int t = threadIdx.x;
  for (int64_t first = lists.offset(row); first < last; first += kBiasTile) {
    const bool inside = first + t < last;
    const int64_t own = inside ? lists.ids[first + t] : -1;
    ids[t] = own, added[t] = inside ? values[first + t] : 0.f;
    __syncthreads();
    bool owner = own >= 0 && own < rows.width;
    for (int i = 0; owner && i < t; ++i) owner = ids[i] != own;
    if (owner) {
      T x = rows.at(row)[own];
      for (int i = t; i < kBiasTile; ++i)
        if (ids[i] == own) x = from_float<T>(to_float(x) + added[i]);
      rows.at(row)[own] = x;
    }
    __syncthreads();
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/edit_rows.h"

namespace fd {

void apply_logit_bias(Tensor logits, Tensor offsets, Tensor ids, Tensor values) {
  const char* op = "apply_logit_bias";
  const RaggedIds lists = ragged_ids(op, logits, offsets, ids);
  const float* added = per_row<float>(op, "values", values, ids.numel(), "float32");
  same_device(op, logits, {offsets, ids, values});
  dispatch_float(op, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    run(launch_on(op, logits), apply_logit_bias_rows<T>,
        dim3(static_cast<unsigned>(logits.size(0))), dim3(kBiasTile), 0, edit_rows<T>(logits),
        lists, added);
  });
}
FD_EXPORT(apply_logit_bias)

}  // namespace fd
#endif

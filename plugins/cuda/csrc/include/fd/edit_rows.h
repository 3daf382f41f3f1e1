// Host side of the ops that edit logits in place, one block for each span of a row.
#pragma once
#include "fd/checks/logits.h"
#include "fd/edit_rows.cuh"
#include "fd/vocab.h"

namespace fd {

template <typename T>
EditRows<T> edit_rows(const Tensor& logits) {
  const int64_t width = logits.size(1);
  return {logits.data<T>(), logits.stride(0), width, (width + kEditSpan - 1) / kEditSpan};
}

template <typename T>
dim3 edit_grid(const EditRows<T>& rows, int64_t n) {
  return dim3(static_cast<unsigned>(n * rows.spans));
}

// Lists of ids per row: offsets [n + 1] into ids [m].
inline RaggedIds ragged_ids(const char* op, Tensor logits, Tensor offsets, Tensor ids) {
  check_ragged(op, logits, offsets, ids);
  return {offsets.data<int32_t>(), ids.data<int64_t>(), ids.numel()};
}

}  // namespace fd

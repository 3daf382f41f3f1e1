// Maps of tensors for the copy engine of sm_90 (hopper.cuh).
#pragma once
#include <cuda.h>

#include "fd/cuda.h"

namespace fd {

using MapEncoder = decltype(&cuTensorMapEncodeTiled);

// The driver's function, through the runtime: nothing links the driver.
inline MapEncoder map_encoder(const char* op) {
  static void* const found = [&] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    FD_CUDA_CHECK(op, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                       cudaEnableDefault, &status));
    return function;
  }();
  if (found == nullptr) fail("RuntimeError", op, ": the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<MapEncoder>(found);
}

// A 4-dimensional tensor of 16-bit elements, innermost first, in boxes; strides in elements, but
// for the innermost. Beyond it: zeros.
inline CUtensorMap tensor_map(const char* op, bool bfloat, const void* data,
                              const cuuint64_t (&size)[4], const int64_t (&stride)[3],
                              const cuuint32_t (&box)[4]) {
  CUtensorMap map;
  cuuint64_t bytes[3];
  // A dimension of one element may have any stride; the encoder wants a valid one.
  for (int d = 0; d < 3; ++d) bytes[d] = size[d + 1] > 1 ? stride[d] * 2 : 16;
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const auto type = bfloat ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult status =
      map_encoder(op)(&map, type, 4, const_cast<void*>(data), size, bytes, box, steps,
                      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    fail("RuntimeError", op, ": cuTensorMapEncodeTiled: error ", static_cast<int>(status));
  return map;
}

// [experts, rows, width], rows adjacent, in boxes of 64 elements by `box` rows.
inline CUtensorMap stack_map(const char* op, bool bfloat, const void* data, int64_t width,
                             int64_t rows, int64_t experts, int box) {
  const auto u = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  return tensor_map(op, bfloat, data, {u(width), u(rows), u(experts), 1},
                    {width, width * rows, width * rows * experts},
                    {64, static_cast<cuuint32_t>(box), 1, 1});
}

}  // namespace fd

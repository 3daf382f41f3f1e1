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

// [experts, rows, width], rows adjacent, in boxes of 64 elements by `box` rows; beyond: zeros.
inline CUtensorMap stack_map(const char* op, bool bfloat, const void* data, int64_t width,
                             int64_t rows, int64_t experts, int box) {
  CUtensorMap map;
  const auto u = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  const cuuint64_t size[4] = {u(width), u(rows), u(experts), 1};
  const cuuint64_t bytes[3] = {u(width * 2), u(width * rows * 2), u(width * rows * experts * 2)};
  const cuuint32_t boxes[4] = {64, static_cast<cuuint32_t>(box), 1, 1}, steps[4] = {1, 1, 1, 1};
  const auto type = bfloat ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult status =
      map_encoder(op)(&map, type, 4, const_cast<void*>(data), size, bytes, boxes, steps,
                      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    fail("RuntimeError", op, ": cuTensorMapEncodeTiled: error ", static_cast<int>(status));
  return map;
}

}  // namespace fd

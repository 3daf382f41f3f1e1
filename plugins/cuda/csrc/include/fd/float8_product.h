// Host side of products of e4m3 matrices by float8 tensor cores (float8_product.cu).
#pragma once
#include "fd/cuda.h"
#include "fd/fp8.h"
#include "fd/scaled_product.cuh"
#include "fd/tensor_tiles.cuh"

namespace fd {

constexpr int kFloat8From = 89;  // the first architecture that has them

// a [rows, depth] and b [columns, depth], contiguous, at 16-byte boundaries; depth a multiple
// of 16.
struct Float8Product {
  const e4m3* a;
  const e4m3* b;
  int64_t rows, columns, depth;
};

// Up to eight rows: the weights as a stream; more: cuBLASLt, where there is enough to do and no
// FD_CUDA_BATCH_INVARIANT, else tiles with the stream's bits. `fixed`: as in SkinnyInput, for b.
void float8_product(const Launch& on, const Float8Product& p, const ScaledSink& sink, bool fixed);

// With scales by blocks of 128 x 128: `fold.length` is ignored.
void float8_blocks(const Launch& on, const Float8Product& p, BlockFold fold, const LinearSink& to);

}  // namespace fd

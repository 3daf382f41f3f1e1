#include "fd/overlap.cuh"
#include "fd/types.h"

namespace fd {

// A thread a pair of equal entries. Double throughout: a float angle is wrong by more than 1e-5
// beyond a few hundred positions.
__global__ void fused_get_rotary_embedding_pairs(const float* positions, int64_t available,
                                                 int64_t length, int64_t rows, int half,
                                                 float2* cos_out, float2* sin_out) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= rows * half) return;
  const int64_t row = i / half;
  const double exponent = -static_cast<double>(i % half) / half;
  const double position = positions[row / length * available + row % length];
  double sine, cosine;
  sincos(position * pow(10000.0, exponent), &sine, &cosine);
  const float c = static_cast<float>(cosine), s = static_cast<float>(sine);
  cos_out[i] = make_float2(c, c);
  sin_out[i] = make_float2(s, s);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/rotary.h"
#include "fd/cuda.h"

namespace fd {

// Pairs of out are written as one word.
inline void fused_get_rotary_embedding_aligned(Tensor out) {
  if (reinterpret_cast<uintptr_t>(out.data<float>()) % alignof(float2) != 0)
    fail("ValueError", "fused_get_rotary_embedding.out: want memory aligned to 8 bytes");
}

void fused_get_rotary_embedding(Tensor input_ids, Tensor position_ids, Tensor head_dim_shape_tensor,
                                int64_t prompt_num, Tensor out) {
  const char* op = "fused_get_rotary_embedding";
  check_rotary_positions(op, input_ids, position_ids, head_dim_shape_tensor, prompt_num, out);
  same_device(op, position_ids, {out});
  fused_get_rotary_embedding_aligned(out);
  const int64_t length = input_ids.size(1), rows = input_ids.size(0) * length;
  const int64_t half = head_dim_shape_tensor.size(0) / 2;
  float2* pairs = out.data<float2>();
  const Launch on = launch_on(op, position_ids);
  run_overlapped(on, fused_get_rotary_embedding_pairs, dim3((rows * half + 127) / 128), dim3(128),
                 0, static_cast<const float*>(position_ids.data<float>() + prompt_num),
                 position_ids.size(1), length, rows, static_cast<int>(half), pairs,
                 pairs + rows * half);
}
FD_EXPORT(fused_get_rotary_embedding)

}  // namespace fd
#endif

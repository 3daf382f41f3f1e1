#include "fd/fp8.cuh"
#include "fd/overlap.cuh"
#include "fd/pack.cuh"

namespace fd {

constexpr int kHadamardLanes = 4, kHadamardEach = 8;  // 32 elements

// One step: the pairs (l, l + H), H < 8 within a lane, else a lane and its neighbour. Each result
// is rounded to bfloat16.
template <int H>
__device__ __forceinline__ void hadamard_step(float (&x)[kHadamardEach], int lane) {
  float sums[kHadamardEach];
#pragma unroll
  for (int i = 0; i < kHadamardEach; ++i) {
    const float other = H < kHadamardEach ? x[i ^ (H % kHadamardEach)]
                                          : __shfl_xor_sync(0xffffffffu, x[i], H / kHadamardEach);
    const bool second = ((lane * kHadamardEach + i) & H) != 0;
    sums[i] = second ? other - x[i] : x[i] + other;
  }
#pragma unroll
  for (int i = 0; i < kHadamardEach; ++i) x[i] = to_float(from_float<bf16>(sums[i]));
}

// N elements at a time.
template <int N>
__global__ void fused_hadamard_quant_fp8_blocks(const bf16* in, int64_t count, float scale,
                                                e4m3* out) {
  let_next_start();
  wait_for_inputs();
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kHadamardEach;
  const int lane = threadIdx.x % kHadamardLanes;
  float x[kHadamardEach] = {};
#pragma unroll
  for (int i = 0; i < kHadamardEach; i += N) {
    if (at >= count) break;
    const Floats<N, bf16> part(in + at + i);
#pragma unroll
    for (int j = 0; j < N; ++j) x[i + j] = part[j];
  }
  hadamard_step<1>(x, lane);
  hadamard_step<2>(x, lane);
  hadamard_step<4>(x, lane);
  hadamard_step<8>(x, lane);
  hadamard_step<16>(x, lane);
  if (at >= count) return;
#pragma unroll
  for (int i = 0; i < kHadamardEach; i += N) {
    float scaled[N];
#pragma unroll
    for (int j = 0; j < N; ++j) scaled[j] = __fdiv_rn(x[i + j], scale);
    *reinterpret_cast<Vec<e4m3, N>*>(out + at + i) = e4m3_codes<N>(scaled);
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/fp8.h"
#include "fd/rowwise.h"

namespace fd {

void fused_hadamard_quant_fp8(Tensor input, double scale, Tensor output) {
  const char* op = "fused_hadamard_quant_fp8";
  Check{op, "input", input}.dtype<bf16>("bfloat16").contiguous();
  Check{op, "output", output}.same_shape(input).dtype<e4m3>("float8_e4m3fn").contiguous();
  if (input.numel() % (kHadamardLanes * kHadamardEach) != 0)
    fail("ValueError", op, ".input: want a multiple of 32 elements, have ", shape_text(input));
  if (!std::isfinite(scale) || scale == 0)
    fail("ValueError", op, ".scale: want a finite number other than 0, have ", scale);
  same_device(op, input, {output});
  const Launch on = launch_on(op, input);
  const bf16* from = input.data<bf16>();
  e4m3* to = output.data<e4m3>();
  const int64_t count = input.numel();
  const dim3 grid((count / kHadamardEach + 127) / 128), block(128);
  const bool packs = aligned16(from) && reinterpret_cast<uintptr_t>(to) % kHadamardEach == 0;
  run_overlapped(on,
                 packs ? fused_hadamard_quant_fp8_blocks<8> : fused_hadamard_quant_fp8_blocks<1>,
                 grid, block, 0, from, count, static_cast<float>(scale), to);
}
FD_EXPORT(fused_hadamard_quant_fp8)

}  // namespace fd
#endif

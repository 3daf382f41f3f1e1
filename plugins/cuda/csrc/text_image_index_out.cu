#include "fd/overlap.cuh"
#include "fd/reduce.cuh"

namespace fd {

// Tokens of a kind in the warps before this one and in all of the block.
struct TextImageCount {
  int before, all;
};
__device__ __forceinline__ TextImageCount text_image_count(const int* warps) {
  TextImageCount n{0, 0};
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
    if (w < static_cast<int>(threadIdx.x) / kWarp) n.before += warps[w];
    n.all += warps[w];
  }
  return n;
}

// One block numbers the tokens of either kind, blockDim.x at a time.
__global__ void text_image_index_out_scan(const int32_t* types, int32_t* text, int32_t* image,
                                          int64_t tokens) {
  __shared__ int warps[2][2][kWarp];  // [turn][kind][warp]
  let_next_start();
  wait_for_inputs();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned below = (1u << lane) - 1;
  int seen[2] = {0, 0}, turn = 0;
  for (int64_t first = 0; first < tokens; first += blockDim.x, turn ^= 1) {
    const int64_t t = first + threadIdx.x;
    const int kind = t < tokens ? types[t] : -1;
    unsigned votes[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      votes[k] = __ballot_sync(0xffffffffu, kind == k);
      if (lane == 0) warps[turn][k][warp] = __popc(votes[k]);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const TextImageCount n = text_image_count(warps[turn][k]);
      if (kind == k) (k == 0 ? text : image)[t] = seen[k] + n.before + __popc(votes[k] & below);
      seen[k] += n.all;
    }
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/ids.h"

namespace fd {

void text_image_index_out(Tensor token_type_ids, Tensor text_index, Tensor image_index) {
  const char* op = "text_image_index_out";
  const int64_t tokens = Check{op, "token_type_ids", token_type_ids}.slot_count();
  const int32_t* types = lens_of(op, "token_type_ids", token_type_ids, tokens);
  lens_of(op, "text_index", text_index, tokens);
  lens_of(op, "image_index", image_index, tokens);
  same_device(op, token_type_ids, {text_index, image_index});
  run_overlapped(launch_on(op, token_type_ids), text_image_index_out_scan, dim3(tokens > 0),
                 dim3(1024), 0, types, text_index.data<int32_t>(), image_index.data<int32_t>(),
                 tokens);
}
FD_EXPORT(text_image_index_out)

}  // namespace fd
#endif

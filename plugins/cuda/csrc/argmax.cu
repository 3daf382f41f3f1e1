#include "fd/overlap.cuh"
#include "fd/vocab_row.cuh"

namespace fd {

template <typename T>
struct ArgmaxBest {
  float value = -INFINITY;
  int64_t id = -1;

  __device__ __forceinline__ void offer(T x, int64_t at) {
    const float v = to_float(x);
    const bool first = id < 0 && v == value;  // -inf counts where nothing else does
    if (v > value || first) value = v, id = at;
  }
  __device__ __forceinline__ uint64_t key() const { return id < 0 ? 0 : order_key(value, id); }
};

template <typename T>
__device__ __forceinline__ uint64_t argmax_span(const T* x, int64_t begin, int64_t end,
                                                bool aligned) {
  constexpr int N = kPack<T>;
  ArgmaxBest<T> best;
  const int64_t step = int64_t{blockDim.x} * N;
  const int64_t whole = aligned ? begin + (end - begin) / N * N : begin;
  int64_t at = begin + threadIdx.x * N;
  for (; at + 3 * step + N <= whole; at += 4 * step) {
    Vec<T, N> packs[4];
#pragma unroll
    for (int v = 0; v < 4; ++v) packs[v] = *reinterpret_cast<const Vec<T, N>*>(x + at + v * step);
#pragma unroll
    for (int v = 0; v < 4; ++v)
#pragma unroll
      for (int i = 0; i < N; ++i) best.offer(packs[v][i], at + v * step + i);
  }
  for (; at + N <= whole; at += step) {
    const Vec<T, N> pack = *reinterpret_cast<const Vec<T, N>*>(x + at);
#pragma unroll
    for (int i = 0; i < N; ++i) best.offer(pack[i], at + i);
  }
  for (int64_t i = whole + threadIdx.x; i < end; i += blockDim.x) best.offer(x[i], i);
  return best.key();
}

// `parts` blocks a row. `slots`, two words a row, are zero before and after: the best key, and how
// many blocks are done; the last one writes the row's result.
template <typename T>
__global__ void __launch_bounds__(256)
    argmax_rows(const T* x, int64_t step, int64_t width, int parts, int64_t span, bool aligned,
                unsigned long long* slots, int64_t* out) {
  __shared__ uint64_t keys[kWarp];
  wait_for_inputs();
  const int64_t row = blockIdx.x / parts, begin = blockIdx.x % parts * span;
  uint64_t key = argmax_span(x + row * step, begin, min(begin + span, width), aligned);
#pragma unroll
  for (int d = kWarp / 2; d > 0; d /= 2) key = max(key, __shfl_xor_sync(0xffffffffu, key, d));
  if (threadIdx.x % kWarp == 0) keys[threadIdx.x / kWarp] = key;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) key = max(key, keys[w]);
  if (parts > 1) {
    unsigned long long* slot = slots + 2 * row;
    atomicMax(slot, static_cast<unsigned long long>(key));
    __threadfence();
    if (atomicAdd(slot + 1, 1ull) + 1 < static_cast<unsigned long long>(parts)) return;
    key = atomicExch(slot, 0ull);
    slot[1] = 0;
  }
  out[row] = key == 0 ? 0 : 0xffffffffu - static_cast<uint32_t>(key);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/vocab.h"

namespace fd {

// Enough blocks to fill the device, and spans of at least 16 KiB.
template <typename T>
int argmax_parts(const Launch& on, int64_t n, int64_t width) {
  const int64_t wanted = int64_t{8} * on.processors() / n;
  const int64_t most = (width * int64_t{sizeof(T)} + (16 << 10) - 1) / (16 << 10);
  return static_cast<int>(std::max<int64_t>(1, std::min(wanted, most)));
}

template <typename T>
void argmax_launch(const Launch& on, Tensor logits, int64_t* out) {
  const int64_t n = logits.size(0), width = logits.size(1);
  int parts = argmax_parts<T>(on, n, width);
  const int64_t span = ((width + parts - 1) / parts + 1023) / 1024 * 1024;
  parts = static_cast<int>((width + span - 1) / span);
  unsigned long long* slots = nullptr;
  if (parts > 1)
    slots = static_cast<unsigned long long*>(
        workspace(on, Scratch::kArgmaxSlots, static_cast<size_t>(2 * n) * sizeof(*slots)));
  run_overlapped(on, argmax_rows<T>, dim3(static_cast<unsigned>(n * parts)), dim3(256), 0,
                 static_cast<const T*>(logits.data<T>()), logits.stride(0), width, parts, span,
                 rows_aligned(logits, sizeof(T)), slots, out);
}

void argmax(Tensor logits, Tensor out) {
  const char* op = "argmax";
  check_vocab(op, "logits", logits);
  int64_t* ids = per_row<int64_t>(op, "out", out, logits.size(0), "int64");
  same_device(op, logits, {out});
  dispatch_float(op, "logits", logits, [&](auto tag) {
    if (logits.size(0) > 0) argmax_launch<decltype(tag)>(launch_on(op, logits), logits, ids);
  });
}
FD_EXPORT(argmax)

}  // namespace fd
#endif

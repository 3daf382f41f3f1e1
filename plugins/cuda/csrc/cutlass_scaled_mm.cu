// int8 products in int32; float8 ones by float8 tensor cores (float8_product.cu), before sm_89 as
// float16, which holds every float8 exactly, in float32.
#include "fd/fp8.cuh"
#include "fd/scaled_product.cuh"
#include "fd/skinny.cuh"
#include "fd/tensor_tiles.cuh"

namespace fd {

// float8 codes as float16, exactly: sixteen a thread.
__global__ void cutlass_scaled_mm_widen(const e4m3* from, int64_t total, f16* to) {
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 16;
  if (at >= total) return;
  const Vec<e4m3, 16> codes = *reinterpret_cast<const Vec<e4m3, 16>*>(from + at);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Vec<f16, 8> wide;
#pragma unroll
    for (int i = 0; i < 8; ++i) wide[i] = from_float<f16>(to_float(codes[8 * half + i]));
    *reinterpret_cast<Vec<f16, 8>*>(to + at + 8 * half) = wide;
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/float8_product.h"
#include "fd/scaled_product.h"
#include "fd/strips.h"

namespace fd {

constexpr int64_t kScaleBlock = 128;
constexpr int64_t kMaxDepth = 131072;  // 128 * 128 * K stays below 2^31

// 1 or `count` scales, [count] or [count, 1]; returns the step.
inline int64_t scale_step(const char* op, const char* arg, Tensor scales, int64_t count) {
  Check{op, arg, scales}.dtype<float>("float32").contiguous();
  if (scales.numel() == 1) return 0;
  Check{op, arg, scales}.slots(count);
  return 1;
}

inline void check_scaled_matrices(const char* op, Tensor c, Tensor a, Tensor b, OptTensor bias) {
  Check{op, "a", a}.rank(2).contiguous();
  Check{op, "b", b}.rank(2).dim(1, a.size(1)).same_dtype(a).contiguous();
  if (!is<int8_t>(a) && !is<e4m3>(a))
    fail("TypeError", op, ".a: want int8 or float8_e4m3fn, have ", dtype_text(a));
  Check{op, "c", c}.rank(2).dim(0, a.size(0)).dim(1, b.size(0)).contiguous();
  if (!half_width(c)) fail("TypeError", op, ".c: want bfloat16 or float16, have ", dtype_text(c));
  if (a.size(1) % 16 != 0 || (is<int8_t>(a) && a.size(1) > kMaxDepth))
    fail("ValueError", op, ".a: want K a multiple of 16, at most 131072, have ", a.size(1));
  if (b.size(0) % 16 != 0) fail("ValueError", op, ".b: want N a multiple of 16, have ", b.size(0));
  if (!aligned16(a.data<void>()) || !aligned16(b.data<void>()))
    fail("ValueError", op, ".a: want a and b at 16-byte boundaries");
  if (bias) Check{op, "bias", bias}.rank(1).dim(0, b.size(0)).same_dtype(c).contiguous();
}

inline BlockFold block_fold(const char* op, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales) {
  const int64_t deep = (a.size(1) + kScaleBlock - 1) / kScaleBlock;
  const int64_t wide = (b.size(0) + kScaleBlock - 1) / kScaleBlock;
  if (is<int8_t>(a))
    fail("ValueError", op, ".a_scales: want per row with int8, have ", shape_text(a_scales));
  Check{op, "a_scales", a_scales}.rank(2).dim(0, a.size(0)).dim(1, deep).contiguous();
  Check{op, "b_scales", b_scales}.rank(2).dim(0, deep).dim(1, wide).contiguous();
  Check{op, "a_scales", a_scales}.dtype<float>("float32");
  Check{op, "b_scales", b_scales}.dtype<float>("float32");
  return {kScaleBlock, a_scales.data<float>(), b_scales.data<float>(), a.size(0), b.size(0), deep,
          wide};
}

inline const f16* widen(const Launch& on, const e4m3* from, int64_t total, f16* to) {
  run(on, cutlass_scaled_mm_widen, dim3(blocks_of(total, 16 * 256)), dim3(256), 0, from, total, to);
  return to;
}

// f(job, first) with strips of b [N, K] as float16.
template <typename F>
void for_float8_strips(const Launch& on, Tensor a, Tensor b, F&& f) {
  const int64_t rows = a.size(0), depth = a.size(1);
  const auto bytes = static_cast<size_t>(a.numel()) * sizeof(f16);
  auto* room = static_cast<f16*>(workspace(on, Scratch::kLinearInput, bytes));
  const f16* x = widen(on, a.data<e4m3>(), a.numel(), room);
  each_strip<f16>(on, b.size(0), depth, kScaleBlock, [&](int64_t first, int64_t count, f16* strip) {
    const f16* w = widen(on, b.data<e4m3>() + first * depth, count * depth, strip);
    f(TensorTiles<f16>{x, w, depth, depth, rows, count, depth}, first);
  });
}

// The sink for columns from `first` on.
inline ScaledSink part_of(ScaledSink sink, int64_t first) {
  sink.to.out = static_cast<char*>(sink.to.out) + 2 * first;
  if (sink.to.bias != nullptr) sink.to.bias = static_cast<const char*>(sink.to.bias) + 2 * first;
  sink.columns += first * sink.column_step;
  return sink;
}

inline void widened_product(const Launch& on, Tensor a, Tensor b, const ScaledSink& sink) {
  for_float8_strips(on, a, b, [&](const TensorTiles<f16>& job, int64_t first) {
    const ScaledSink part = part_of(sink, first);
    const PlainWeights<f16, kPlainWindow> weights{job.w, job.w_step, job.depth, job.columns};
    const auto rows = static_cast<int>(job.rows);
    const SkinnyInput<f16> input{job.x, job.x_step, job.depth, rows, 0, 0, false};
    if (job.rows <= kStreamedRows && skinny_launch(on, weights, input, part)) return;
    tensor_launch(on, job, part);
  });
}

inline void widened_blocks(const Launch& on, Tensor a, Tensor b, const BlockFold& fold,
                           const LinearSink& to) {
  for_float8_strips(on, a, b, [&](const TensorTiles<f16>& job, int64_t first) {
    LinearSink part = to;
    part.out = static_cast<char*>(to.out) + 2 * first;
    if (to.bias != nullptr) part.bias = static_cast<const char*>(to.bias) + 2 * first;
    BlockFold mine = fold;
    mine.w_scales += first / kScaleBlock, mine.columns = job.columns;
    tensor_launch(on, job, mine, part);
  });
}

void cutlass_scaled_mm(Tensor c, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales,
                       OptTensor bias) {
  const char* op = "cutlass_scaled_mm";
  check_scaled_matrices(op, c, a, b, bias);
  const auto fits = [](Tensor t, int64_t n) { return t.numel() == 1 || t.numel() == n; };
  const int64_t m = a.size(0), n = b.size(0), k = a.size(1);
  const bool blocks =
      !(fits(a_scales, m) && fits(b_scales, n)) && a_scales.ndim() == 2 && b_scales.ndim() == 2;
  BlockFold fold{};
  ScaledSink sink{{c.data<void>(), bias ? bias.data<void>() : nullptr, n, kind_of(c), kind_of(c)},
                  a_scales.data<float>(),
                  b_scales.data<float>(),
                  0,
                  0};
  if (blocks) {
    fold = block_fold(op, a, b, a_scales, b_scales);
  } else {
    sink.row_step = scale_step(op, "a_scales", a_scales, m);
    sink.column_step = scale_step(op, "b_scales", b_scales, n);
  }
  same_device(op, a, {b, c, a_scales, b_scales, bias});
  if (c.numel() == 0) return;
  const Launch on = launch_on(op, a);
  if (is<int8_t>(a))
    return int8_product(on, {a.data<int8_t>(), b.data<int8_t>(), m, n, k}, sink, false);
  if (on.sm() < kFloat8From)
    return blocks ? widened_blocks(on, a, b, fold, sink.to) : widened_product(on, a, b, sink);
  const Float8Product product{a.data<e4m3>(), b.data<e4m3>(), m, n, k};
  blocks ? float8_blocks(on, product, fold, sink.to) : float8_product(on, product, sink, false);
}
FD_EXPORT(cutlass_scaled_mm)

}  // namespace fd
#endif

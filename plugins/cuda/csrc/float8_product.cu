// Products of e4m3 matrices with scales, on float8 tensor cores.
#include "fd/float8_mma.cuh"
#include "fd/scaled_product.cuh"
#include "fd/skinny.cuh"
#include "fd/tensor_tiles.cuh"

namespace fd {

constexpr int kFloat8Window = 64;  // pairs of codes

// Weights as they are in a checkpoint; of two blocks on a multiprocessor one streams while the
// other adds up.
struct Float8Weights : PlainWeights<e4m3x2, kFloat8Window> {
  static constexpr int kBlocks = 2, kDeep = 4, kFlat = 2;
};

// to [columns + rows]: scales of columns, then of rows; where there is one for all, that one.
__global__ void float8_product_scales(ScaledSink sink, int64_t rows, int64_t columns, float* to) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < columns)
    to[i] = sink.column(i);
  else if (i < columns + rows)
    to[i] = sink.rows[(i - columns) * sink.row_step];
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/cublaslt.h"
#include "fd/float8_product.h"
#include "fd/linear.h"
#include "fd/scaled_product.h"
#include "fd/workspace.h"

namespace fd {

constexpr int64_t kFloat8LibraryProducts = int64_t{1} << 26;

inline lt::Product float8_sums(const Float8Product& p) {
  return {p.rows,    p.columns,       p.depth,   p.depth, p.depth, p.columns, lt::kR8F_E4M3,
          lt::kR32F, lt::kCompute32F, lt::kR32F, p.a,     p.b,     nullptr,   nullptr};
}

// The library's kernels with a scale for each row and column do not share K out among processors:
// with few tiles of 128 columns by 128 rows, its plain sums and our own scales are faster.
inline bool few_tiles(const Launch& on, const Float8Product& p, const ScaledSink& sink) {
  const int64_t tiles = int64_t{blocks_of(p.rows, 128)} * blocks_of(p.columns, 128);
  return (sink.row_step != 0 || sink.column_step != 0) && 2 * tiles < on.processors();
}

// What cuBLASLt can apply itself: one scale for each side, or one for every row and column, at
// 16-byte boundaries.
inline void library_scales(const Launch& on, const Float8Product& p, const ScaledSink& sink,
                           lt::Product* job) {
  job->x_scales = sink.rows, job->w_scales = sink.columns;
  job->by_row = sink.row_step != 0 || sink.column_step != 0;
  const bool alike = (sink.row_step != 0) == (sink.column_step != 0);
  if (alike && aligned16(sink.rows) && aligned16(sink.columns)) return;
  const int64_t rows = job->by_row ? p.rows : 1, columns = job->by_row ? p.columns : 16;
  auto* room = static_cast<float*>(
      workspace(on, Scratch::kLinearStrip, static_cast<size_t>(rows + columns) * sizeof(float)));
  run(on, float8_product_scales, dim3(blocks_of(rows + columns, 256)), dim3(256), 0, sink, rows,
      columns, room);
  job->w_scales = room, job->x_scales = room + columns;
}

// Scales, bias and rounding in the library; false where it cannot (rows and columns: sm_90 alone).
inline bool float8_library_whole(const Launch& on, const Float8Product& p, const ScaledSink& sink) {
  const LinearSink& to = sink.to;
  if (to.out_kind == kFloat32 || to.step != p.columns || !aligned16(to.out)) return false;
  if (to.bias != nullptr && (to.bias_kind != to.out_kind || !aligned16(to.bias))) return false;
  lt::Product job = float8_sums(p);
  job.out_type = to.out_kind == kBfloat16 ? lt::kR16BF : lt::kR16F;
  job.out = to.out, job.bias = to.bias;
  library_scales(on, p, sink, &job);
  return lt::multiply(on, job);
}

// Sums by the library, rows in chunks whose sums have room; the rest by a kernel of ours.
inline bool float8_library_sums(const Launch& on, const Float8Product& p, const ScaledSink& sink) {
  const int64_t fitting = static_cast<int64_t>(kSumBytes / sizeof(float)) / p.columns;
  const int64_t chunk = std::min(std::max<int64_t>(fitting, 1), p.rows);
  auto* sums = static_cast<float*>(
      workspace(on, Scratch::kLinearStrip, static_cast<size_t>(chunk * p.columns) * sizeof(float)));
  for (int64_t m = 0; m < p.rows; m += chunk) {
    const int64_t rows = std::min(chunk, p.rows - m);
    lt::Product job = float8_sums({p.a + m * p.depth, p.b, rows, p.columns, p.depth});
    job.out = sums;
    if (!lt::multiply(on, job)) return false;  // for the first chunk already: all ask the same
    finish_sums<float>(on, sums, rows, p.columns, m, sink);
  }
  return true;
}

inline bool float8_library(const Launch& on, const Float8Product& p, const ScaledSink& sink) {
  if (p.rows <= kSkinnyRows || batch_invariant() || lt::api() == nullptr) return false;
  if (p.rows * p.columns * p.depth < kFloat8LibraryProducts) return false;
  return (!few_tiles(on, p, sink) && float8_library_whole(on, p, sink)) ||
         float8_library_sums(on, p, sink);
}

// Codes in pairs, as the kernels for 16-bit elements count them.
inline TensorTiles<e4m3x2> float8_tiles(const Float8Product& p) {
  const auto* a = reinterpret_cast<const e4m3x2*>(p.a);
  const auto* b = reinterpret_cast<const e4m3x2*>(p.b);
  const int64_t depth = p.depth / 2;
  return {a, b, depth, depth, p.rows, p.columns, depth};
}

void float8_product(const Launch& on, const Float8Product& p, const ScaledSink& sink, bool fixed) {
  if (float8_library(on, p, sink)) return;
  const TensorTiles<e4m3x2> job = float8_tiles(p);
  const Float8Weights weights{{job.w, job.depth, job.depth, job.columns}};
  const SkinnyInput<e4m3x2> input{job.x, job.depth, job.depth, static_cast<int>(p.rows),
                                  0,     0,         fixed};
  if (p.rows <= kStreamedRows && skinny_launch(on, weights, input, sink)) return;
  tensor_launch(on, job, PlainFold{skinny_slice(job.depth, kFloat8Window)}, sink);
}

void float8_blocks(const Launch& on, const Float8Product& p, BlockFold fold, const LinearSink& to) {
  fold.length = 128 / 2;
  tensor_launch(on, float8_tiles(p), fold, to);
}

}  // namespace fd
#endif

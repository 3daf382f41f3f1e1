// Host side of products of int8 matrices with scales.
#pragma once
#include "fd/cublaslt.h"
#include "fd/linear.h"
#include "fd/scaled_product.cuh"
#include "fd/workspace.h"

namespace fd {

// a [rows, depth] and b [columns, depth], contiguous, at 16-byte boundaries; depth a multiple
// of 16.
struct Int8Product {
  const int8_t* a;
  const int8_t* b;
  int64_t rows, columns, depth;
};

constexpr size_t kSumBytes = 64 << 20;

// Scales, bias and rounding of `rows` rows of sums, from row m0 of the output on.
template <typename Sum>
void finish_sums(const Launch& on, const Sum* sums, int64_t rows, int64_t columns, int64_t m0,
                 const ScaledSink& sink) {
  const bool whole = columns % 4 == 0 && sink.to.step % 4 == 0 && aligned16(sink.to.out);
  const dim3 block(256), grid(blocks_of(columns, whole ? 1024 : 256),
                              static_cast<unsigned>(std::min<int64_t>(rows, 4096)));
  if (whole)
    run(on, scaled_product_finish<Sum, 4>, grid, block, 0, sums, rows, columns, m0, sink);
  else
    run(on, scaled_product_finish<Sum, 1>, grid, block, 0, sums, rows, columns, m0, sink);
}

// By cuBLASLt, rows in chunks whose sums have room; false where it is not installed.
inline bool int8_library(const Launch& on, const Int8Product& p, const ScaledSink& sink) {
  if (lt::api() == nullptr) return false;
  const int64_t fitting = static_cast<int64_t>(kSumBytes / sizeof(int32_t)) / p.columns;
  const int64_t chunk = std::min(std::max<int64_t>(fitting, 1), p.rows);
  auto* sums = static_cast<int32_t*>(workspace(
      on, Scratch::kLinearStrip, static_cast<size_t>(chunk * p.columns) * sizeof(int32_t)));
  for (int64_t m = 0; m < p.rows; m += chunk) {
    const int64_t rows = std::min(chunk, p.rows - m);
    const bool done = lt::multiply(
        on, {rows, p.columns, p.depth, p.depth, p.depth, p.columns, lt::kR8I, lt::kR32I,
             lt::kCompute32I, lt::kR32I, p.a + m * p.depth, p.b, nullptr, sums});
    if (!done) return false;  // for the first chunk already: all ask the same
    finish_sums<int32_t>(on, sums, rows, p.columns, m, sink);
  }
  return true;
}

// The sums are exact: the ways give the same bits. `fixed`: as in SkinnyInput, for b.
inline void int8_product(const Launch& on, const Int8Product& p, const ScaledSink& sink,
                         bool fixed) {
  const auto* a = reinterpret_cast<const int8x2*>(p.a);
  const auto* b = reinterpret_cast<const int8x2*>(p.b);
  const int64_t depth = p.depth / 2;
  const bool many = p.rows > kSkinnyRows && p.rows * p.columns * p.depth >= kLibraryProducts;
  if (many && int8_library(on, p, sink)) return;
  const PlainWeights<int8x2, kPlainWindow> weights{b, depth, depth, p.columns};
  const SkinnyInput<int8x2> input{a, depth, depth, static_cast<int>(p.rows), 0, 0, fixed};
  if (p.rows <= kStreamedRows && skinny_launch(on, weights, input, sink)) return;
  tensor_launch<int8x2>(on, {a, b, depth, depth, p.rows, p.columns, depth}, sink);
}

}  // namespace fd

// Host side of linear layers over packed weights: few rows straight from the codes, many through
// strips of 16-bit weights.
#pragma once
#include "fd/linear.h"
#include "fd/packed_linear.cuh"
#include "fd/packed_tiles.cuh"
#include "fd/strips.h"

namespace fd {

// Up to these rows codes are unpacked between shared memory and tensor cores, beyond into plain
// weights.
constexpr int64_t kTiledRows = 128;

inline void check_tensor_cores(const Launch& on) {
  if (on.sm() < 80)
    fail("RuntimeError", on.op, ": want compute capability 8.0 or newer, have ", on.sm() / 10, ".",
         on.sm() % 10, "; use quantization none");
}

template <typename Weights, typename T>
void packed_strips(const Launch& on, const Weights& weights, Tensor x, OptTensor bias, Tensor out) {
  const dim3 grid(static_cast<unsigned>(8 * on.facts().processors));
  for_strips<T>(on, x, bias, out, kSkinnyTile, [&](int64_t first, int64_t count, T* strip) {
    run(on, linear_unpack<Weights, T>, grid, dim3(256), 0, weights, first / kSkinnyTile,
        int64_t{blocks_of(count, kSkinnyTile)}, x.size(1), strip);
  });
}

template <typename Weights, typename T, int WM>
void packed_tiles(const Launch& on, const Weights& weights, Tensor x, const LinearSink& sink) {
  constexpr int kStages = 3, kShared = kStages * kPackedStage<Weights, WM> * 16;
  const dim3 grid(blocks_of(x.size(0), kPackedRowsOfWarp * WM),
                  blocks_of(weights.columns, kPackedTiles * kSkinnyTile));
  allow_shared_once<linear_packed_tiles<Weights, T, WM, kStages>>(on, kShared);
  run_overlapped(on, linear_packed_tiles<Weights, T, WM, kStages>, grid, dim3(256), kShared,
                 weights, skinny_input<T>(x, true), sink);
}

// x [M, K] of 16-bit elements, out [M, N]; `weights` made for x's type.
template <typename Weights, typename T>
void packed_linear(const Launch& on, const Weights& weights, Tensor x, OptTensor bias, Tensor out,
                   const LinearSink& sink) {
  const int64_t rows = x.size(0);
  const SkinnyInput<T> input = skinny_input<T>(x, true);
  if (rows <= 2 * kSkinnyRows && skinny_launch(on, weights, input, sink)) return;
  if (rows > kTiledRows && !batch_invariant())
    return packed_strips<Weights, T>(on, weights, x, bias, out);
  if (rows <= kPackedRowsOfWarp) return packed_tiles<Weights, T, 1>(on, weights, x, sink);
  packed_tiles<Weights, T, 2>(on, weights, x, sink);
}

inline void check_packed_input(const char* op, const Tensor& x) {
  if (!half_width(x)) fail("TypeError", op, ".x: want bfloat16 or float16, have ", dtype_text(x));
  if (!in_units(x))
    fail("ValueError", op, ".x: want rows of a multiple of 8 elements at 16-byte boundaries, have ",
         shape_text(x));
}

}  // namespace fd

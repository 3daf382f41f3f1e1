// Host side of linear layers that take a norm, a gate or an addition along (skinny_ends.cuh).
#pragma once
#include "fd/linear.h"
#include "fd/norm.h"
#include "fd/skinny_ends.cuh"

namespace fd {

// What a call takes along: x is RMS-normed with `norm` [K] first, if given; W's rows are `gated`,
// gates and ups; the result is to `add` to out.
struct FusedEnds {
  OptTensor norm;
  double eps;
  bool gated, add;
};

// Longest row whose squares op rms_norm adds up as NormStart does.
constexpr int64_t kNormedDepth = 32768;

inline void check_fused_norm(const char* op, const Tensor& x, const FusedEnds& ends) {
  if (!ends.norm) return;
  Check{op, "norm", ends.norm}.rank(1).dim(0, x.size(1)).contiguous().same_dtype(x);
  check_eps(op, ends.eps);
  if (!aligned16(ends.norm.data<void>()))
    fail("ValueError", op, ".norm: want it at a 16-byte boundary");
  if (x.size(1) > kNormedDepth)
    fail("ValueError", op, ".x: want at most ", kNormedDepth, " columns with a norm, have ",
         shape_text(x));
}

inline void check_fused_input(const char* op, const Tensor& x, const FusedEnds& ends) {
  Check{op, "x", x}.rank(2).inner_contiguous();
  if (!half_width(x)) fail("TypeError", op, ".x: want bfloat16 or float16, have ", dtype_text(x));
  if (x.size(0) > kSkinnyRows)
    fail("ValueError", op, ".x: want at most ", kSkinnyRows, " rows, have ", shape_text(x));
  if (x.size(1) == 0 || !in_units(x))
    fail("ValueError", op, ".x: want rows of a multiple of 8 elements at 16-byte boundaries, have ",
         shape_text(x));
  check_fused_norm(op, x, ends);
  if (ends.gated && ends.add) fail("ValueError", op, ": want gated or add, have both");
}

// Checks all but W, of which it returns the rows.
inline int64_t check_fused(const char* op, const Tensor& x, const FusedEnds& ends,
                           const Tensor& out) {
  check_fused_input(op, x, ends);
  Check{op, "out", out}.rank(2);
  if (ends.gated || ends.add) Check{op, "out", out}.same_dtype(x);
  if (ends.gated && out.size(1) % kSkinnyTile != 0)
    fail("ValueError", op, ".out: want a multiple of ", kSkinnyTile, " columns if gated, have ",
         shape_text(out));
  if (out.numel() > 0 && out.data<char>() == x.data<char>())
    fail("ValueError", op, ".out: want memory of its own, have x's");
  return out.size(1) * (ends.gated ? 2 : 1);
}

// Packed weights: one block of two teams on a multiprocessor. In a decoder block, products with a
// norm before them take turns with those without.
template <typename Weights, typename T>
void fused_launch(const Launch& on, const Weights& weights, const Tensor& x, const FusedEnds& ends,
                  const LinearSink& sink) {
  constexpr int kTeams = Weights::kBlocks;
  const SkinnyRoom room = ends.norm || ends.gated ? SkinnyRoom::kWide : SkinnyRoom::kNarrow;
  const NormStart<T> start{ends.norm ? ends.norm.data<T>() : nullptr, static_cast<float>(ends.eps)};
  const SkinnyInput<T> input = skinny_input<T>(x, true);
  const auto go = [&](const auto& from, const auto& to) {
    return skinny_launch<kTeams>(on, weights, input, to, from, room);
  };
  const bool fits = ends.gated  ? go(start, GatedSink<T>{sink, weights.columns / 2})
                    : ends.norm ? go(start, AddingSink<T>{sink, ends.add})
                                : go(PlainStart<T>{}, AddingSink<T>{sink, ends.add});
  if (!fits)
    fail("ValueError", on.op, ".x: want rows short enough for a block's shared memory, have ",
         shape_text(x));
}

inline void check_streams(const Launch& on) {
  if (on.sm() < 80)
    fail("RuntimeError", on.op, ": want compute capability 8.0 or newer, have ", on.sm() / 10, ".",
         on.sm() % 10);
}

}  // namespace fd

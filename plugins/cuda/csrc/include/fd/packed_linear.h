// Host side of linear layers over packed weights: few rows straight from the codes, many through
// strips of 16-bit weights.
#pragma once
#include "fd/linear.h"
#include "fd/packed_groups.h"
#include "fd/packed_linear.cuh"
#include "fd/packed_tiles.cuh"
#include "fd/strips.h"
#include "fd/team.h"

namespace fd {

// Up to these rows weights are streamed past eight at a time. Up to the second where tiles gain
// little: up to so many weights on sm_90 (H200: 10.8 against 12.1 us for 17 rows, 4096 x 4096);
// elsewhere up to the third, where that keeps more multiprocessors busy than tiles do and eight
// rows of x leave room.
constexpr int64_t kPackedStreamed = 16, kPackedStreamedGroups = 24, kPackedStreamedMost = 32;
constexpr int64_t kPackedStreamedWeights = int64_t{1} << 24, kPackedStreamedDepth = 8192;
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

// What the start and end of a block and its team cost, in windows (measured on an H100).
constexpr int kPackedEnds = 12;

// Blocks that share K: what keeps the multiprocessors evenly busy. `resident`: blocks on each;
// `slice`: windows of an eighth.
inline int packed_team(const Launch& on, const dim3& tiles, int64_t slice, int resident) {
  if (on.sm() < 90) return 1;
  int best = 1;
  int64_t least = INT64_MAX;
  for (const int size : {1, kSkinnyWarps}) {
    const int64_t blocks = int64_t{tiles.x} * tiles.y * size, room = on.processors() * resident;
    const int64_t rounds = (blocks + room - 1) / room;
    const int64_t time = rounds * (kSkinnyWarps / size * slice + kPackedEnds);
    if (time < least) best = size, least = time;
  }
  return best;
}

// A launch of `Kernel`, whose blocks have 128 rows of W and `rows` of x.
template <typename Weights, auto Kernel, typename... Args>
void packed_launch(const Launch& on, const Weights& weights, Tensor x, int rows, int resident,
                   int shared, Args... args) {
  const int64_t slice = skinny_slice(x.size(1), Weights::kWindow) / Weights::kWindow;
  const dim3 tiles(blocks_of(x.size(0), rows),
                   blocks_of(weights.columns, kPackedTiles * kSkinnyTile));
  const int team = packed_team(on, tiles, slice, resident);
  allow_shared_once<Kernel>(on, static_cast<size_t>(shared));
  run_team(on, Kernel, team, false, dim3(tiles.x * team, tiles.y), dim3(256),
           static_cast<size_t>(shared), weights, args...);
}

template <typename Weights, typename T, int WM>
void packed_tiles(const Launch& on, const Weights& weights, Tensor x, const LinearSink& sink) {
  constexpr int kStages = 4, kShared = kStages * kPackedStage<Weights, WM> * 16 +
                                       PackedParts<WM * 16>::kSlot * int{sizeof(float)};
  packed_launch<Weights, linear_packed_tiles<Weights, T, WM, kStages>>(
      on, weights, x, kPackedRowsOfWarp * WM, WM == 1 ? 2 : 1, kShared, skinny_input<T>(x, true),
      sink);
}

inline bool packed_streamed(const Launch& on, int64_t rows, int64_t columns, int64_t depth) {
  if (rows <= kPackedStreamed || depth == 0) return true;
  if (on.sm() == 90)
    return rows <= kPackedStreamedGroups && columns * depth <= kPackedStreamedWeights;
  return rows <= kPackedStreamedMost && depth <= kPackedStreamedDepth &&
         static_cast<int>(blocks_of(columns, kPackedTiles * kSkinnyTile)) < on.processors();
}

// x [M, K] of 16-bit elements, out [M, N]; `weights` made for x's type.
template <typename Weights, typename T>
void packed_linear(const Launch& on, const Weights& weights, Tensor x, OptTensor bias, Tensor out,
                   const LinearSink& sink) {
  const int64_t rows = x.size(0);
  const SkinnyInput<T> input = skinny_input<T>(x, true);
  if (packed_streamed(on, rows, weights.columns, x.size(1)) &&
      skinny_launch(on, weights, input, sink))
    return;
  if (rows > kTiledRows && !batch_invariant())
    return packed_strips<Weights, T>(on, weights, x, bias, out);
  if (on.sm() == 90) return packed_groups<Weights, T>(on, weights, x, sink);
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

// Host side of experts over packed weights: both products of a call, by the kernel that serves.
#pragma once
#include "fd/expert_packed.cuh"
#include "fd/linear.h"
#include "fd/packed_linear.h"
#include "fd/workspace.h"

namespace fd {

// Up to so many rows an expert on average codes are streamed past eight rows at a time, up to the
// second tiles have 32 rows, beyond 64.
constexpr int64_t kExpertStreamed = 8, kExpertLow = 24;

// What one call works on: x [rows, hidden]; codes [experts, 2, tiles, windows, bytes] of gate and
// up, [experts, tiles, windows, bytes] of down; scales likewise.
struct PackedCall {
  const char* op;
  Tensor x, ends, up, up_scales, down, down_scales;
  int64_t inner;
  Tensor out;

  int64_t hidden() const { return x.size(1); }
  int64_t experts() const { return up.size(0); }
  ExpertRows rows() const {
    return {ends.data<int64_t>(), static_cast<int>(experts()), x.size(0), 0, false};
  }
};

inline void check_packed_call(const PackedCall& call) {
  const char* op = call.op;
  Check{op, "x", call.x}.rank(2).contiguous();
  check_packed_input(op, call.x);
  Check{op, "out", call.out}.same_shape(call.x).same_dtype(call.x).contiguous();
  Check{op, "gate_up_codes", call.up}.rank(5).dim(1, 2).contiguous();
  Check{op, "down_codes", call.down}.rank(4).dim(0, call.experts()).contiguous();
  Check{op, "ends", call.ends}.dtype<int64_t>("int64").rank(1).dim(0, call.experts()).contiguous();
  if (call.inner <= 0 || call.inner % 8 != 0)
    fail("ValueError", op, ".intermediate: want a positive multiple of 8, have ", call.inner);
  if (call.x.size(0) > INT32_MAX)
    fail("ValueError", op, ".x: want fewer than 2^31 rows, have ", shape_text(call.x));
  same_device(op, call.x,
              {call.ends, call.up, call.up_scales, call.down, call.down_scales, call.out});
}

// Codes of matrices [columns, depth] in windows of `window` steps; bytes of a window of a tile.
template <typename C>
void check_codes(const char* op, const char* arg, Tensor codes, const char* type, int64_t columns,
                 int64_t depth, int64_t window, int64_t bytes) {
  const int n = codes.ndim();
  const Check check{op, arg, codes};
  check.dtype<C>(type).dim(n - 3, blocks_of(columns, kSkinnyTile));
  check.dim(n - 2, blocks_of(depth, window)).dim(n - 1, bytes);
}

// Scales [..., columns] behind the dimensions that say which matrix.
inline void check_row_scales(const char* op, const char* arg, Tensor scales, Tensor codes,
                             int64_t columns) {
  const int n = codes.ndim() - 3;
  const Check check{op, arg, scales};
  check.rank(n + 1).dtype<float>("float32").dim(n, columns).contiguous();
  for (int i = 0; i < n; ++i) check.dim(i, codes.size(i));
}

template <typename Weights, typename T, int S, int Parts>
void expert_rows(const Launch& on, PackedExperts<Weights, T> job) {
  const int64_t most = on.facts().block_shared;
  const auto bytes = [&](int each) {
    const ExpertRows& r = job.rows;
    job.each = each;
    job.room = static_cast<int>(r.rows / each + std::min<int64_t>(r.experts, r.rows));
    return expert_shared<Weights, Parts>(S, job.depth, each, job.room);
  };
  int each = kSkinnyRows;
  while (each > 1 && bytes(each) > most) each /= 2;
  const int64_t shared = bytes(each);
  if (shared > most)
    fail("ValueError", on.op, ": want rows that fit in ", most, " bytes of shared memory, have ",
         job.depth, " elements");
  const bool two = 2 * (shared + kSharedOfSystem) <= on.facts().all_shared;
  const int blocks = (two ? 2 : 1) * on.processors();
  allow_shared_once<moe_packed_rows<Weights, T, S, Parts>>(on, static_cast<size_t>(most));
  run_overlapped(on, moe_packed_rows<Weights, T, S, Parts>, dim3(static_cast<unsigned>(blocks)),
                 dim3(32 * kSkinnyWarps), static_cast<size_t>(shared), job);
}

template <typename Weights, typename T, int WM, int Parts>
void expert_tiles_of(const Launch& on, const PackedExperts<Weights, T>& job) {
  constexpr int kStages = 4, kShared = kStages * kPackedStage<Weights, WM> * 16;
  constexpr int kHeight = kPackedRowsOfWarp * WM;
  const dim3 grid(blocks_of(job.tiles(), kPackedTiles / Parts),
                  static_cast<unsigned>(expert_tiles(job.rows, kHeight)));
  allow_shared_once<moe_packed_tiles<Weights, T, WM, kStages, Parts>>(on, kShared);
  run_overlapped(on, moe_packed_tiles<Weights, T, WM, kStages, Parts>, grid, dim3(256), kShared,
                 job);
}

template <typename Weights, typename T, int Parts>
void expert_product(const Launch& on, const PackedExperts<Weights, T>& job) {
  const int64_t mean = job.rows.rows / job.rows.experts;
  if (mean <= kExpertStreamed) return expert_rows<Weights, T, Weights::kDeep, Parts>(on, job);
  if (mean <= kExpertLow) return expert_tiles_of<Weights, T, 1, Parts>(on, job);
  expert_tiles_of<Weights, T, 2, Parts>(on, job);
}

// `up`, `down`: the stacks as the kernels take them.
template <typename T, typename Weights>
void packed_experts(const Launch& on, const PackedCall& call, const Weights& up,
                    const Weights& down) {
  const auto bytes = static_cast<size_t>(call.x.size(0) * call.inner) * sizeof(T);
  T* inner = static_cast<T*>(workspace(on, Scratch::kMoeInner, bytes));
  const ExpertRows rows = call.rows();
  expert_product<Weights, T, 2>(on,
                                {rows, call.x.data<T>(), call.hidden(), up, inner, 0, 0, false});
  expert_product<Weights, T, 1>(on,
                                {rows, inner, call.inner, down, call.out.data<T>(), 0, 0, true});
}

}  // namespace fd

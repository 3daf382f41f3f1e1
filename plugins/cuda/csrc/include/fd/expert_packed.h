// Host side of experts over packed weights: both products of a call, by the kernel that serves.
#pragma once
#include "fd/expert_packed.cuh"
#include "fd/expert_packed_call.h"
#include "fd/workspace.h"

namespace fd {

// Up to so many rows an expert on average groups have one tile of eight rows, beyond two (measured
// on an H200).
constexpr int64_t kMeanOfOne = 12;
// From so many on the tiles of sm_90a are faster.
constexpr int64_t kMeanWide = 14;

// Shared memory that a block may ask for: the kernel has some of its own.
inline int64_t expert_block_shared(const Launch& on) { return on.facts().block_shared - 1024; }

// Rows of a group, at most, where an expert has few: room for more would keep the next kernel's
// blocks from fetching their codes early.
template <typename Shape>
int wanted_group(const ExpertRows& rows) {
  if (Shape::RT > 1 || rows.rows >= 2 * int64_t{rows.experts}) return Shape::kRows;
  return 4 * rows.rows <= rows.experts ? 2 : 4;
}

// Bytes of a block that fit, with rows of a group: as many as are wanted, or half of them and so
// on; 0 where not even whole tiles of eight fit, or one row for a shape of one tile.
template <typename Shape>
int64_t fitting_group(const Launch& on, const ExpertRows& rows, int64_t depth, int* each) {
  constexpr int kLeast = Shape::RT == 1 ? 1 : 8;
  for (*each = wanted_group<Shape>(rows); *each >= kLeast; *each /= 2) {
    const int64_t bytes = Shape::shared(depth, *each, static_cast<int>(most_groups(rows, *each)));
    if (bytes <= expert_block_shared(on)) return bytes;
  }
  return 0;
}

// run_overlapped for blocks of which all find room at once, however many they are.
template <typename... Params, typename... Args>
void run_staying(const Launch& on, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                 Args... args) {
  cudaLaunchConfig_t config = launch_config(on, grid, block, shared);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  if (on.sm() >= 90) config.attrs = &overlap, config.numAttrs = 1;
  launch(on, kernel, config, args...);
}

// False, and nothing launched, where rows are too long.
template <typename Weights, typename T, int RT, int Parts>
bool expert_rows(const Launch& on, PackedExperts<Weights, T> job) {
  using Shape = PackedShape<Weights, RT, Parts>;
  const int64_t shared = fitting_group<Shape>(on, job.rows, job.depth, &job.each);
  if (shared == 0) return false;
  job.room = static_cast<int>(most_groups(job.rows, job.each));
  const int64_t fitting = on.facts().all_shared / (shared + kSharedOfSystem);
  const auto blocks = std::min<int64_t>(fitting, Shape::kBlocks) * on.processors();
  allow_shared_once<moe_packed_rows<Shape, T>>(on, static_cast<size_t>(shared));
  run_staying(on, moe_packed_rows<Shape, T>, dim3(static_cast<unsigned>(blocks)),
              dim3(32 * kSkinnyWarps), static_cast<size_t>(shared), job);
  return true;
}

template <typename Weights, typename T, int Parts>
void expert_product(const Launch& on, const PackedExperts<Weights, T>& job) {
  const int64_t mean = job.rows.rows / job.rows.experts;
  if (mean > kMeanOfOne && expert_rows<Weights, T, 2, Parts>(on, job)) return;
  if (expert_rows<Weights, T, 1, Parts>(on, job)) return;
  fail("ValueError", on.op, ": want rows that fit in ", expert_block_shared(on),
       " bytes of shared memory beside the codes under way, have ", job.depth, " elements");
}

// Room for [rows, intermediate], between the products.
template <typename T>
T* expert_inner(const Launch& on, const PackedCall& call) {
  const auto bytes = static_cast<size_t>(call.x.size(0) * call.inner) * sizeof(T);
  return static_cast<T*>(workspace(on, Scratch::kMoeInner, bytes));
}

// `up`, `down`: the stacks as the kernels take them.
template <typename T, typename Weights>
void packed_experts(const Launch& on, const PackedCall& call, const Weights& up,
                    const Weights& down) {
  const ExpertRows rows = call.rows();
  T* inner = expert_inner<T>(on, call);
  expert_product<Weights, T, 2>(on,
                                {rows, call.x.data<T>(), call.hidden(), up, inner, 0, 0, false});
  expert_product<Weights, T, 1>(on,
                                {rows, inner, call.inner, down, call.out.data<T>(), 0, 0, true});
}

// f(up, down) with the stacks of int8 weights.
template <typename T, typename F>
void with_int8_stacks(const PackedCall& call, F&& f) {
  const auto stack = [](Tensor codes, Tensor scales, int64_t columns) {
    return Int8Weights<T>{{codes.data<uint4>(), static_cast<int>(codes.size(-2))},
                          {scales.data<float>(), columns}};
  };
  f(stack(call.up, call.up_scales, call.inner), stack(call.down, call.down_scales, call.hidden()));
}

// The same of int4 weights; `group`: its length, 0 for one scale per output.
template <typename T, typename F>
void with_int4_stacks(const PackedCall& call, int group, F&& f) {
  const auto windows = [](Tensor t) { return static_cast<int>(t.size(-2)); };
  const auto rows = [&](Tensor codes, Tensor scales, int64_t columns) {
    return Int4RowWeights<T>{{codes.data<uint4>(), windows(codes)},
                             {scales.data<float>(), columns}};
  };
  const int64_t inner = call.inner, hidden = call.hidden();
  if (group == 0)
    return f(rows(call.up, call.up_scales, inner), rows(call.down, call.down_scales, hidden));
  const auto groups = [&](auto none) {
    const auto stack = [&](Tensor codes, Tensor scales, int64_t columns) {
      return decltype(none){
          {codes.data<uint4>(), windows(codes)}, scales.data<uint32_t>(), columns};
    };
    f(stack(call.up, call.up_scales, inner), stack(call.down, call.down_scales, hidden));
  };
  group == 64 ? groups(Int4Weights<T, 64>{}) : groups(Int4Weights<T, 128>{});
}

// Both products by sm_90a's kernel for many rows (moe_expert_packed_sm90.cu; weak: a build without
// this architecture has no such file). False, and nothing launched, where it does not fit. `group`:
// as above; -1: int8.
bool wide_packed(const Launch& on, const PackedCall& call, int group) __attribute__((weak));

// Weights of groups are rounded there, so not where a row must not depend on the others.
inline bool packed_wide(const Launch& on, const PackedCall& call, int group) {
  return wide_packed != nullptr && call.x.size(0) / call.experts() >= kMeanWide &&
         !batch_invariant() && wide_packed(on, call, group);
}

}  // namespace fd

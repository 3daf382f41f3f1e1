// Host side of packed_groups.cuh: which of its kernels, and how many blocks share K.
#pragma once
#include "fd/linear.h"
#include "fd/packed_groups.cuh"
#include "fd/team.h"
#include "fd/workspace.h"

namespace fd {

// Blocks of a launch: G and R of the kernel, blocks of a team, whether each has its multiprocessor
// to itself.
struct GroupPlan {
  int groups, rows, team;
  bool alone;
};

// Clock cycles, from fits to times on an H200.
struct GroupCosts {
  int64_t alone, shared;  // of a window of 128 steps: one group on a multiprocessor, two
  int64_t ends;           // of a block's start and end
};

inline GroupCosts group_costs(const GroupPlan& plan) {
  const int64_t ends = 4000 + plan.rows * (plan.team == 1 ? 120 : 25 + 200 / plan.team);
  if (plan.groups == 2) return {2400, 2400, ends};
  return plan.rows == 32 ? GroupCosts{1110, 1765, ends} : GroupCosts{1500, 2500, ends};
}

// Cycles of a launch of `tiles` teams, of which `room` fit on the device at once; `windows` of 64
// steps in an eighth of K.
inline int64_t group_time(const Launch& on, const GroupPlan& plan, int64_t tiles, int64_t room,
                          int64_t windows) {
  if (room == 0) return INT64_MAX;
  const GroupCosts costs = group_costs(plan);
  const int64_t each = kSkinnyWarps / plan.team * windows, full = tiles / room, rest = tiles % room;
  const auto time = [&](bool shared) {
    return costs.ends + each * (shared ? costs.shared : costs.alone) / 2;
  };
  const bool crowded = !plan.alone && rest * plan.team * 2 > on.processors();
  return full * time(!plan.alone) + (rest > 0 ? time(crowded) : 0);
}

template <typename Weights, typename T, int G, int R>
struct GroupKernel {
  using Shape = GroupShape<Weights, G, R>;
  static constexpr auto kKernel = linear_packed_groups<Weights, T, G, R>;

  // Bytes that leave no room for another block, or those that are needed.
  static size_t shared(bool alone) {
    return static_cast<size_t>(alone ? kSharedOfBlock : Shape::kShared);
  }
  static int64_t tiles(int64_t rows, int64_t columns) {
    return int64_t{blocks_of(rows, R)} * blocks_of(columns, Shape::kColumns);
  }
  // Keeps in `best` what takes less than `least`.
  static void weigh(const Launch& on, int64_t rows, int64_t columns, int64_t windows,
                    GroupPlan* best, int64_t* least) {
    allow_shared_once<kKernel>(on, kSharedOfBlock);
    for (const int team : {1, 2, 4, 8}) {
      for (const bool alone : {true, false}) {
        if (G == 2 && (team > 1 || !alone)) continue;
        const GroupPlan plan{G, R, team, alone};
        const int room = teams_at_once<kKernel>(on, team, Shape::kThreads, shared(alone), alone);
        const int64_t time = group_time(on, plan, tiles(rows, columns), room, windows);
        if (time < *least) *least = time, *best = plan;
      }
    }
  }
  static void launch(const Launch& on, const GroupPlan& plan, const Weights& weights, Tensor x,
                     const LinearSink& sink) {
    const int64_t across = blocks_of(x.size(0), R),
                  along = blocks_of(weights.columns, Shape::kColumns);
    const int64_t sums = across * along * kSkinnyWarps * R * Shape::kColumns;
    void* scratch = plan.team == 1
                        ? nullptr
                        : workspace(on, Scratch::kLinearSums, static_cast<size_t>(sums) * 4);
    const dim3 grid(static_cast<unsigned>(across * plan.team), static_cast<unsigned>(along));
    run_team(on, kKernel, plan.team, true, grid, dim3(Shape::kThreads), shared(plan.alone), weights,
             skinny_input<T>(x, true), static_cast<float*>(scratch), sink);
  }
};

// For devices of sm_90a.
template <typename Weights, typename T>
void packed_groups(const Launch& on, const Weights& weights, Tensor x, const LinearSink& sink) {
  using Few = GroupKernel<Weights, T, 1, 32>;
  using Some = GroupKernel<Weights, T, 1, 64>;
  using Many = GroupKernel<Weights, T, 2, 64>;
  const int64_t rows = x.size(0), windows = skinny_slice(x.size(1), Weights::kWindow) / 64;
  GroupPlan plan{1, 32, 1, false};
  int64_t least = INT64_MAX;
  Few::weigh(on, rows, weights.columns, windows, &plan, &least);
  if (rows > 32) {
    Some::weigh(on, rows, weights.columns, windows, &plan, &least);
    Many::weigh(on, rows, weights.columns, windows, &plan, &least);
  }
  if (plan.rows == 32) return Few::launch(on, plan, weights, x, sink);
  if (plan.groups == 1) return Some::launch(on, plan, weights, x, sink);
  Many::launch(on, plan, weights, x, sink);
}

}  // namespace fd

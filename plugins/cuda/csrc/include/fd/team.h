// Launches of teams: blocks that share work through each other's shared memory (cluster.cuh).
#pragma once
#include "fd/cuda.h"

namespace fd {

// A launch of teams of `size` neighbours along x, which grid.x is a multiple of. 1: no teams, on
// any architecture; more (up to 8) from sm_90 on. Not overlapped: where they are few, blocks that
// start early crowd on the multiprocessors that are free first (measured: 35 -> 50 us, H100).
template <typename... Params, typename... Args>
void run_team(const Launch& on, void (*kernel)(Params...), int size, dim3 grid, dim3 block,
              size_t shared, Args... args) {
  cudaLaunchConfig_t config = launch_config(on, grid, block, shared);
  cudaLaunchAttribute team{};
  team.id = cudaLaunchAttributeClusterDimension;
  team.val.clusterDim.x = static_cast<unsigned>(size);
  team.val.clusterDim.y = team.val.clusterDim.z = 1;
  if (size > 1) config.attrs = &team, config.numAttrs = 1;
  launch(on, kernel, config, args...);
}

}  // namespace fd

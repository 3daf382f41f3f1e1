// Launches of teams: blocks that share work through each other's shared memory (cluster.cuh).
#pragma once
#include "fd/cuda.h"

namespace fd {

// run_overlapped for teams of `size` neighbours along x, which grid.x is a multiple of. 1: no
// teams, on any architecture; more (up to 8) from sm_90 on.
template <typename... Params, typename... Args>
void run_team(const Launch& on, void (*kernel)(Params...), int size, dim3 grid, dim3 block,
              size_t shared, Args... args) {
  if (size == 1) return run_overlapped(on, kernel, grid, block, shared, args...);
  cudaLaunchConfig_t config = launch_config(on, grid, block, shared);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(size);
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  const bool small = int64_t{grid.x} * grid.y * grid.z <= 2 * on.processors();
  config.attrs = attributes, config.numAttrs = small ? 2 : 1;
  launch(on, kernel, config, args...);
}

}  // namespace fd

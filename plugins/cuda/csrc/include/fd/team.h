// Launches of teams: blocks that share work through each other's shared memory (cluster.cuh).
#pragma once
#include <atomic>

#include "fd/cuda.h"

namespace fd {

// A launch of teams of `size` neighbours along x, which grid.x is a multiple of. 1: no teams, on
// any architecture; more (up to 8) from sm_90 on. `overlapped`: as run_overlapped() does; not where
// several blocks fit on a multiprocessor and there are few: those that start early crowd on the
// multiprocessors that are free first (measured: 35 -> 50 us, H100).
template <typename... Params, typename... Args>
void run_team(const Launch& on, void (*kernel)(Params...), int size, bool overlapped, dim3 grid,
              dim3 block, size_t shared, Args... args) {
  cudaLaunchConfig_t config = launch_config(on, grid, block, shared);
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (size > 1) {
    cudaLaunchAttribute& team = attributes[count++];
    team.id = cudaLaunchAttributeClusterDimension;
    team.val.clusterDim.x = static_cast<unsigned>(size);
    team.val.clusterDim.y = team.val.clusterDim.z = 1;
  }
  if (overlapped && on.sm() >= 90) {
    cudaLaunchAttribute& overlap = attributes[count++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  config.attrs = attributes, config.numAttrs = count;
  launch(on, kernel, config, args...);
}

constexpr int kMostTeam = 8;

// Teams of `size` blocks that the device holds at once; `variant` (0 or 1) of `shared` bytes.
template <auto Kernel>
int teams_at_once(const Launch& on, int size, int threads, size_t shared, int variant) {
  static std::atomic<int> known[kMaxDevices][kMostTeam + 1][2];
  std::atomic<int>& slot = known[on.device][size][variant];
  if (const int found = slot.load(std::memory_order_relaxed); found > 0) return found - 1;
  cudaLaunchConfig_t config = launch_config(on, dim3(static_cast<unsigned>(size)),
                                            dim3(static_cast<unsigned>(threads)), shared);
  cudaLaunchAttribute team{};
  team.id = cudaLaunchAttributeClusterDimension;
  team.val.clusterDim.x = static_cast<unsigned>(size);
  team.val.clusterDim.y = team.val.clusterDim.z = 1;
  config.attrs = &team, config.numAttrs = 1;
  const void* target = kernel_on(on.op, on.device, reinterpret_cast<const void*>(Kernel));
  int count = 0;
  FD_CUDA_CHECK(on.op, cudaOccupancyMaxActiveClusters(&count, target, &config));
  slot.store(count + 1, std::memory_order_relaxed);
  return count;
}

}  // namespace fd

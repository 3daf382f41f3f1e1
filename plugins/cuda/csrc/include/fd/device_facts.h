// What a launch needs to know of its device, asked once: a query costs as much as a check.
#pragma once
#include <atomic>
#include <mutex>

#include "fd/workspace.h"

namespace fd {

// shared: bytes of shared memory, of a block at most and of a multiprocessor.
struct DeviceFacts {
  int sm, processors, block_shared, all_shared;
};

inline const DeviceFacts& device_facts(const Launch& on) {
  static DeviceFacts facts[kMaxDevices];
  static std::once_flag known[kMaxDevices];
  std::call_once(known[on.device], [&] {
    facts[on.device] = {on.sm(), on.processors(),
                        on.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                        on.attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
  });
  return facts[on.device];
}

// allow_shared for a kernel, once for each device and size that exceeds the last.
template <auto Kernel>
void allow_shared_once(const Launch& on, size_t bytes) {
  static std::atomic<size_t> allowed[kMaxDevices];
  if (allowed[on.device].load(std::memory_order_relaxed) >= bytes) return;
  allow_shared(on, Kernel, bytes);
  allowed[on.device].store(bytes, std::memory_order_relaxed);
}

}  // namespace fd

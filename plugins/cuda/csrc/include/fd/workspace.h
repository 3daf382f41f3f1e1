// Device scratch of catalogue ops whose contract has no workspace argument.
//
// One buffer per purpose and device: zero when it is allocated, then left as its user leaves it, so
// that counters which end at zero start at zero. It only grows and what it outgrew stays allocated:
// captured graphs hold the old addresses. Calls on several streams at once share it; who needs that
// brings a workspace of its own.
#pragma once
#include <mutex>

#include "fd/cuda.h"

namespace fd {

// A purpose is used by the kernels of one op, or of ops that write it before they read it.
enum class Scratch {
  kAttentionPartials,
  kAttentionCounters,
  kAppendQueries,
  kLinear,
  kLinearStrip,
  kLinearInput,
  kVocabParts,
  kArgmaxSlots,
  kSlotSort,
  kMoeInner,
  kCount
};

constexpr int kMaxDevices = 64;

struct WorkspaceSlot {
  std::mutex lock;
  void* data = nullptr;
  size_t bytes = 0;
};

// At least `bytes`, aligned to 256. RuntimeError where it would have to grow while `on.stream` is
// being captured, MemoryError where the device has no room.
inline void* workspace(const Launch& on, Scratch purpose, size_t bytes) {
  static WorkspaceSlot slots[static_cast<int>(Scratch::kCount)][kMaxDevices];
  WorkspaceSlot& slot = slots[static_cast<int>(purpose)][on.device];
  const std::lock_guard<std::mutex> guard(slot.lock);
  if (slot.bytes >= bytes) return slot.data;
  if (capturing(on))
    fail("RuntimeError", on.op, ": want ", bytes,
         " bytes of scratch while a graph is captured, have ", slot.bytes,
         "; call it once with these shapes before the capture");
  void* grown = nullptr;
  if (cudaMalloc(&grown, bytes) != cudaSuccess) {
    cudaGetLastError();
    fail("MemoryError", on.op, ": want ", bytes, " bytes of scratch on device ", on.device,
         "; free memory that tensors or other processes hold");
  }
  FD_CUDA_CHECK(on.op, cudaMemsetAsync(grown, 0, bytes, on.stream));
  slot.data = grown, slot.bytes = bytes;
  return grown;
}

}  // namespace fd

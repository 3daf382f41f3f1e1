// Device scratch of catalogue ops whose contract has no workspace argument.
//
// One buffer per purpose, device and stream, so that calls on several streams do not meet: zero
// when it is allocated, then left as its user leaves it, so that counters which end at zero start
// at zero. It only grows and what it outgrew stays allocated: captured graphs hold the old
// addresses. Calls that are captured take the largest there is, which is that of the stream where
// they ran before; graphs that run at the same time on several streams are not provided for.
#pragma once
#include <mutex>

#include "fd/cuda.h"

namespace fd {

// A purpose is used by the kernels of one op, or of ops that write it before they read it.
enum class Scratch {
  kAttentionPartials,
  kAttentionCounters,
  kAttentionQueue,
  kAppendQueries,
  kLinear,
  kLinearStrip,
  kLinearInput,
  kLinearSums,
  kVocabParts,
  kArgmaxSlots,
  kSlotSort,
  kMoeInner,
  kCount
};

constexpr int kMaxStreams = 16;

struct WorkspaceSlot {
  cudaStream_t stream;
  void* data;
  size_t bytes;
};

struct WorkspaceSlots {
  std::mutex lock;
  WorkspaceSlot at[kMaxStreams] = {};
  int count = 0;
};

// The slot of the call's stream; in a capture, whose stream is often made for it alone, the
// largest.
inline WorkspaceSlot& workspace_slot(const Launch& on, WorkspaceSlots& slots) {
  WorkspaceSlot* largest = &slots.at[0];
  for (int i = 0; i < slots.count; ++i) {
    if (slots.at[i].stream == on.stream) return slots.at[i];
    if (slots.at[i].bytes > largest->bytes) largest = &slots.at[i];
  }
  if (capturing(on)) return *largest;
  if (slots.count == kMaxStreams)
    fail("RuntimeError", on.op, ": want scratch on at most ", kMaxStreams,
         " streams, have one more; use the same streams again");
  WorkspaceSlot& fresh = slots.at[slots.count++];
  fresh = {on.stream, nullptr, 0};
  return fresh;
}

// At least `bytes`, aligned to 256. RuntimeError where it would have to grow while `on.stream` is
// being captured, MemoryError where the device has no room.
inline void* workspace(const Launch& on, Scratch purpose, size_t bytes) {
  static WorkspaceSlots all[static_cast<int>(Scratch::kCount)][kMaxDevices];
  WorkspaceSlots& slots = all[static_cast<int>(purpose)][on.device];
  const std::lock_guard<std::mutex> guard(slots.lock);
  WorkspaceSlot& slot = workspace_slot(on, slots);
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

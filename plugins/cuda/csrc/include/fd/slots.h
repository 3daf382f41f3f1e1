// Host side of the ops with one thread per slot.
#pragma once
#include "fd/checks/vectors.h"
#include "fd/cuda.h"
#include "fd/slots.cuh"

namespace fd {

inline Ids id_list(const char* op, const char* arg, const Tensor& t) {
  check_list(op, arg, t);
  return {t.data<int64_t>(), t.numel()};
}

constexpr int kSlotThreads = 128;

inline dim3 slot_grid(int64_t n) {
  return dim3(static_cast<unsigned>((n + kSlotThreads - 1) / kSlotThreads));
}

}  // namespace fd

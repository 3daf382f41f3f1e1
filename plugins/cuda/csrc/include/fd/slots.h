// Host side of the ops with one thread per slot.
#pragma once
#include "fd/cuda.h"
#include "fd/slots.cuh"

namespace fd {

// One value per slot, [n] or [n, 1].
template <typename T>
T* slots(const char* op, const char* arg, const Tensor& t, int64_t n, const char* dtype) {
  Check{op, arg, t}.slots(n).dtype<T>(dtype).contiguous();
  return t.data<T>();
}

// The number of slots by its int64 vector.
inline int64_t count_slots(const char* op, const char* arg, const Tensor& t) {
  return Check{op, arg, t}.dtype<int64_t>("int64").contiguous().slot_count();
}

inline Ids id_list(const char* op, const char* arg, const Tensor& t) {
  Check{op, arg, t}.dtype<int64_t>("int64").contiguous();
  return {t.data<int64_t>(), t.numel()};
}

constexpr int kSlotThreads = 128;

inline dim3 slot_grid(int64_t n) {
  return dim3(static_cast<unsigned>((n + kSlotThreads - 1) / kSlotThreads));
}

}  // namespace fd

// Working memory of a calling thread: grows, is reused by the next call and freed with the thread.
// For buffers whose size depends on the batch, where a caller cannot know what a kernel needs.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fd {

class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  // At least `count` floats at a multiple of 2 MiB, contents undefined; throws std::bad_alloc.
  float* get(int64_t count) {
    if (count > size_) grow(count);
    return data_;
  }

 private:
  static constexpr size_t kPage = size_t{2} << 20;

  void grow(int64_t count) {
    std::free(data_);
    data_ = nullptr, size_ = 0;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + kPage - 1) / kPage * kPage;
    data_ = static_cast<float*>(std::aligned_alloc(kPage, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    size_ = static_cast<int64_t>(bytes / sizeof(float));
  }

  float* data_ = nullptr;
  int64_t size_ = 0;
};

// One buffer per thread and slot; slots keep buffers apart that are used at the same time.
template <int Slot>
float* scratch(int64_t count) {
  thread_local Scratch buffer;
  return buffer.get(count);
}

}  // namespace fd

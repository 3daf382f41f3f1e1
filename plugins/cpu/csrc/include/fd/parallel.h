// The plug-in's own thread pool: static partition, so results never depend on the thread count.
#pragma once
#include <cstdint>
#include <type_traits>

namespace fd {

int num_threads();
void set_num_threads(int n);

namespace detail {
using Body = void (*)(void* ctx, int64_t begin, int64_t end);
void run_parallel(int64_t n, int64_t grain, Body body, void* ctx);
}  // namespace detail

// body(begin, end) over [0, n), in at most num_threads() contiguous ranges of at least `grain`.
// Nested calls run on the calling thread. `body` must not throw.
template <typename F>
void parallel_for(int64_t n, int64_t grain, F&& body) {
  using Fn = std::remove_reference_t<F>;
  detail::run_parallel(
      n, grain, [](void* ctx, int64_t b, int64_t e) { (*static_cast<Fn*>(ctx))(b, e); },
      const_cast<std::remove_const_t<Fn>*>(&body));
}

}  // namespace fd

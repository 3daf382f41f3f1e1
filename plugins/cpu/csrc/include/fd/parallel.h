// The plug-in's own thread pool: static partition, so results never depend on the thread count.
// Which thread runs a part is left open: a worker that the system keeps off its core costs no
// waiting.
#pragma once
#include <cstdint>
#include <type_traits>

// Compiled once for all: the build gives `fd` another name per ISA (CMakeLists.txt), but not this.
namespace fd_pool {
using Body = void (*)(void* ctx, int64_t begin, int64_t end);
int num_threads();
void set_num_threads(int n);
void run_parallel(int64_t n, int64_t grain, Body body, void* ctx);
void run_cells(int64_t n, Body body, void* ctx);
}  // namespace fd_pool

namespace fd {

using fd_pool::num_threads;
using fd_pool::set_num_threads;

namespace detail {
template <typename Fn>
void* erase(const Fn& body) {
  return const_cast<std::remove_const_t<Fn>*>(&body);
}
template <typename Fn>
void invoke(void* ctx, int64_t begin, int64_t end) {
  (*static_cast<Fn*>(ctx))(begin, end);
}
}  // namespace detail

// body(begin, end) over [0, n), in at most num_threads() contiguous ranges of at least `grain`.
// Nested calls run on the calling thread. `body` must not throw.
template <typename F>
void parallel_for(int64_t n, int64_t grain, F&& body) {
  using Fn = std::remove_reference_t<F>;
  fd_pool::run_parallel(n, grain, detail::invoke<Fn>, detail::erase(body));
}

// body(i, i + 1) for each of n <= 65535 cells, taken in order by whichever thread is free: for
// cells of some 50 microseconds or more, where more cells than threads even out the load.
template <typename F>
void parallel_cells(int64_t n, F&& body) {
  using Fn = std::remove_reference_t<F>;
  fd_pool::run_cells(n, detail::invoke<Fn>, detail::erase(body));
}

}  // namespace fd

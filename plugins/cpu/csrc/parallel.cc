#include "fd/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "fd/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FD_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define FD_PAUSE() ([] { asm volatile("yield"); }())
#else
#define FD_PAUSE() ((void)0)
#endif

namespace fd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// A step issues hundreds of short regions in a row: workers look for the next one this long before
// they sleep, at first without giving the core away. An idle engine leaves the cores to the server.
constexpr microseconds kSpin{60}, kAwake{300};
constexpr int kPauses = 32;  // between two looks at the clock

thread_local bool inside_region = false;

// The open region in one word, so that claiming a part and checking its region are one step:
// generation (32 bits), parts (16), parts claimed (16).
struct Ticket {
  uint64_t word;
  static Ticket open(uint32_t generation, uint32_t parts) {
    return {uint64_t{generation} << 32 | uint64_t{parts} << 16};
  }
  uint32_t generation() const { return static_cast<uint32_t>(word >> 32); }
  uint32_t parts() const { return word >> 16 & 0xffff; }
  uint32_t claimed() const { return word & 0xffff; }
  bool left() const { return claimed() < parts(); }
};

class Pool {
 public:
  Pool(int threads, const std::vector<int>& cpus) : threads_(threads) {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this] { work(); });
      if (!cpus.empty()) pin(workers_.back(), cpus[static_cast<size_t>(i) % cpus.size()]);
    }
  }

  ~Pool() {
    stopping_.store(true);
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return threads_; }

  void run(int64_t n, int parts, fd_pool::Body body, void* ctx) {
    n_ = n, parts_ = parts, body_ = body, ctx_ = ctx;
    done_.store(0, std::memory_order_relaxed);
    const uint32_t generation = Ticket{ticket_.load(std::memory_order_relaxed)}.generation() + 1;
    ticket_.store(Ticket::open(generation, static_cast<uint32_t>(parts)).word);
    if (sleepers_.load() > 0) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }  // whoever counted itself now waits, or sees the word
      wake_.notify_all();
    }
    while (take_part()) {
    }
    for (int i = 0; done_.load(std::memory_order_acquire) != parts; ++i)
      i < 4096 ? FD_PAUSE() : std::this_thread::yield();
  }

 private:
  static void pin([[maybe_unused]] std::thread& thread, [[maybe_unused]] int cpu) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<size_t>(cpu), &set);
    pthread_setaffinity_np(thread.native_handle(), sizeof(set),
                           &set);  // a refusal costs speed alone
#endif
  }

  // Runs one unclaimed part of the open region; false when there is none. The region's fields are
  // read only while a part of it is claimed and not done: `run` changes them after all parts are
  // done.
  bool take_part() {
    Ticket t{ticket_.load(std::memory_order_acquire)};
    do {
      if (!t.left()) return false;
    } while (!ticket_.compare_exchange_weak(t.word, t.word + 1, std::memory_order_acq_rel,
                                            std::memory_order_acquire));
    const int64_t i = t.claimed();
    inside_region = true;
    body_(ctx_, n_ * i / parts_, n_ * (i + 1) / parts_);
    inside_region = false;
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  bool work_left() const { return Ticket{ticket_.load()}.left(); }

  bool spin(Clock::time_point since) const {
    for (auto idle = Clock::now() - since; idle < kAwake; idle = Clock::now() - since) {
      for (int i = 0; i < kPauses; ++i) {
        if (work_left() || stopping_.load(std::memory_order_relaxed)) return true;
        FD_PAUSE();
      }
      if (idle > kSpin) std::this_thread::yield();
    }
    return false;
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [this] { return work_left() || stopping_.load(); });
    sleepers_.fetch_sub(1);
  }

  void work() {
    while (!stopping_.load()) {
      while (take_part()) {
      }
      if (!spin(Clock::now())) sleep();
    }
  }

  const int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  int64_t n_ = 0;
  int parts_ = 1;
  fd_pool::Body body_ = nullptr;
  void* ctx_ = nullptr;
};

std::mutex region_mutex;  // two Python threads never share the pool at once
Pool* pool = nullptr;     // not destroyed at exit: the workers may be gone by then
int wanted = 1;
std::vector<int> worker_cpus;

// Threads do not survive a fork: the child makes a pool of its own.
void forget_pool() {
  pool = nullptr;
  new (&region_mutex) std::mutex;
}

void drop_pool() {
  delete pool;
  pool = nullptr;
}

void run(int64_t n, int parts, fd_pool::Body body, void* ctx) {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  std::lock_guard<std::mutex> lock(region_mutex);
  if (pool == nullptr) pool = new Pool(wanted, worker_cpus);
  pool->run(n, parts, body, ctx);
}

}  // namespace
}  // namespace fd

namespace fd_pool {
using namespace fd;

int num_threads() { return wanted; }

void set_num_threads(int n) {
  std::lock_guard<std::mutex> lock(region_mutex);
  wanted = std::clamp(n, 1, 1024);
  drop_pool();
}

void run_parallel(int64_t n, int64_t grain, Body body, void* ctx) {
  if (n <= 0) return;
  const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
  const int parts = static_cast<int>(std::min<int64_t>(wanted, most));
  if (parts == 1 || inside_region) return body(ctx, 0, n);
  run(n, parts, body, ctx);
}

void run_cells(int64_t n, Body body, void* ctx) {
  if (n > 0xffff) fail("ValueError", "parallel_cells: want at most 65535 cells, have ", n);
  if (n > 1 && wanted > 1 && !inside_region) return run(n, static_cast<int>(n), body, ctx);
  for (int64_t i = 0; i < n; ++i) body(ctx, i, i + 1);
}

}  // namespace fd_pool

namespace fd {

void set_threads(int64_t n) { set_num_threads(static_cast<int>(n)); }
FD_EXPORT(set_threads)

// Worker i runs on cpus[i % count] from now on; the calling thread (worker 0) is not moved. Empty:
// free.
void set_affinity(Tensor cpus) {
  Check{"set_affinity", "cpus", cpus}.rank(1).dtype<int32_t>("int32").contiguous();
  std::lock_guard<std::mutex> lock(region_mutex);
  worker_cpus.assign(cpus.data<int32_t>(), cpus.data<int32_t>() + cpus.numel());
  drop_pool();
}
FD_EXPORT(set_affinity)

}  // namespace fd

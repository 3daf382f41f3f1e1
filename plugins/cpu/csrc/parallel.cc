#include "fd/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "fd/abi.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define FD_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define FD_PAUSE() asm volatile("yield")
#else
#define FD_PAUSE() ((void)0)
#endif

namespace fd {
namespace {

// A step issues hundreds of short regions in a row: workers spin this long between two of them before
// they sleep, so that an idle engine leaves the cores to the server.
constexpr int kSpins = 20000;

thread_local bool inside_region = false;

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return threads_; }

  void run(int64_t n, int parts, detail::Body body, void* ctx) {
    n_ = n, parts_ = parts, body_ = body, ctx_ = ctx;
    pending_.store(threads_ - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);  // pairs with the wait: no wake-up is lost
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (sleepers_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    part(0);
    while (pending_.load(std::memory_order_acquire) != 0) FD_PAUSE();
  }

 private:
  void part(int i) {
    if (i >= parts_) return;
    inside_region = true;
    body_(ctx_, n_ * i / parts_, n_ * (i + 1) / parts_);
    inside_region = false;
  }

  uint64_t next_generation(uint64_t seen) {
    for (int i = 0; i < kSpins; ++i) {
      const uint64_t now = generation_.load(std::memory_order_acquire);
      if (now != seen) return now;
      FD_PAUSE();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    sleepers_.fetch_sub(1);
    return generation_.load();
  }

  void work(int index) {
    uint64_t seen = 0;
    while (true) {
      seen = next_generation(seen);
      if (stopping_) return;
      part(index);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> pending_{0}, sleepers_{0};
  bool stopping_ = false;
  int64_t n_ = 0;
  int parts_ = 0;
  detail::Body body_ = nullptr;
  void* ctx_ = nullptr;
};

std::mutex region_mutex;  // two Python threads never share the pool at once
std::unique_ptr<Pool> pool;
int wanted = 1;

}  // namespace

int num_threads() { return wanted; }

void set_num_threads(int n) {
  std::lock_guard<std::mutex> lock(region_mutex);
  wanted = std::max(1, n);
  pool.reset();
}

namespace detail {

void run_parallel(int64_t n, int64_t grain, Body body, void* ctx) {
  if (n <= 0) return;
  const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
  const int parts = static_cast<int>(std::min<int64_t>(wanted, most));
  if (parts == 1 || inside_region) return body(ctx, 0, n);
  std::lock_guard<std::mutex> lock(region_mutex);
  if (!pool || pool->size() != wanted) pool = std::make_unique<Pool>(wanted);
  pool->run(n, parts, body, ctx);
}

}  // namespace detail

void set_threads(int64_t n) { set_num_threads(static_cast<int>(n)); }
FD_EXPORT(set_threads)

}  // namespace fd

#include "base/thread_pool.h"

#include <utility>

#include "base/error.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace lola {
namespace {

constexpr int kSpinRounds = 4000;  // some 50 microseconds: longer than the gap between two loops

// The parts of ThreadPool::loop_.
constexpr uint64_t kWorkers = 0xFFFF;  // in the loop
constexpr uint64_t kOpen = 1 << 16;
constexpr uint64_t kCallerSleeps = 1 << 17;
constexpr uint64_t kNextLoop = 1 << 18;  // the loop's number, from here up

void pause_cpu() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(const Condition& condition) {
  for (int round = 0; round < kSpinRounds; ++round) {
    if (condition()) return true;
    pause_cpu();
  }
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > 1024) {
    throw UsageError(message("threads: found ", threads, ", wanted 1 to 1024"));
  }
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(sleep_mutex_);
    stop_.store(true);
  }
  opened_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, const void* context, Call call) {
  std::lock_guard caller(caller_mutex_);
  count_ = count;
  context_ = context;
  call_ = call;
  next_.store(0, std::memory_order_relaxed);
  const bool shared = count > 1 && !workers_.empty();
  if (shared) open_loop();
  drain(0);
  if (shared) close_loop();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::open_loop() {
  // Between loops the word holds the number of the last one alone.
  loop_.store(loop_.load(std::memory_order_relaxed) + kNextLoop + kOpen);
  if (sleepers_.load() == 0) return;
  // Whoever counts as a sleeper saw the loop, or holds the mutex until it waits.
  { std::lock_guard lock(sleep_mutex_); }
  opened_.notify_all();
}

void ThreadPool::close_loop() {
  loop_.fetch_and(~kOpen);
  const auto all_left = [this] { return (loop_.load(std::memory_order_acquire) & kWorkers) == 0; };
  if (spin_until(all_left)) return;
  std::unique_lock lock(sleep_mutex_);
  loop_.fetch_or(kCallerSleeps);
  left_.wait(lock, all_left);
  loop_.fetch_and(~kCallerSleeps);
}

void ThreadPool::drain(int thread) {
  for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
    try {
      call_(context_, index, thread);
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(count_, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    const auto opened = [&] {
      const uint64_t loop = loop_.load();
      return ((loop & kOpen) != 0 && loop / kNextLoop != seen) || stop_.load();
    };
    if (!spin_until(opened)) {
      std::unique_lock lock(sleep_mutex_);
      sleepers_.fetch_add(1);
      opened_.wait(lock, [&] { return opened(); });
      sleepers_.fetch_sub(1);
    }
    if (!join_next_loop(seen)) continue;
    drain(thread);
    leave_loop();
  }
}

// Joins the loop that is open, if it is another than the one last seen.
bool ThreadPool::join_next_loop(uint64_t& seen) {
  uint64_t loop = loop_.load();
  while ((loop & kOpen) != 0 && loop / kNextLoop != seen) {
    if (loop_.compare_exchange_weak(loop, loop + 1, std::memory_order_acquire)) {
      seen = loop / kNextLoop;
      return true;
    }
  }
  return false;
}

void ThreadPool::leave_loop() {
  const uint64_t before = loop_.fetch_sub(1, std::memory_order_acq_rel);
  if ((before & kCallerSleeps) == 0 || (before & kWorkers) != 1) return;
  { std::lock_guard lock(sleep_mutex_); }  // the caller holds it until it waits
  left_.notify_one();
}

}  // namespace lola

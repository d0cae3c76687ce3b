#include "base/thread_pool.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace lola {
namespace {

constexpr int kSpinRounds = 4000;  // about 20 microseconds: longer than the gap between two loops

void pause_cpu() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
int read_int(const std::string& path) {
  std::ifstream file(path);
  int value = -1;
  file >> value;
  return value;
}

// Hyper-threads of one core share (package, core id), so distinct pairs are physical cores.
int physical_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return 0;
  std::set<std::pair<int, int>> cores;
  int logical = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    ++logical;
    const std::string topology = message("/sys/devices/system/cpu/cpu", cpu, "/topology/");
    const int core = read_int(topology + "core_id");
    if (core >= 0) cores.emplace(read_int(topology + "physical_package_id"), core);
  }
  return cores.empty() ? logical : static_cast<int>(cores.size());
}
#elif defined(__APPLE__)
int physical_cores() {
  int count = 0;
  size_t size = sizeof(count);
  if (sysctlbyname("hw.perflevel0.physicalcpu", &count, &size, nullptr, 0) == 0) return count;
  return sysctlbyname("hw.physicalcpu", &count, &size, nullptr, 0) == 0 ? count : 0;
}
#else
int physical_cores() { return static_cast<int>(std::thread::hardware_concurrency()); }
#endif

}  // namespace

int default_thread_count() { return std::max(1, physical_cores()); }

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
    std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, const void* context, Call call) {
  std::lock_guard caller(caller_mutex_);
  count_ = count;
  context_ = context;
  call_ = call;
  error_ = nullptr;
  next_.store(0, std::memory_order_relaxed);
  const bool shared = count > 1 && !workers_.empty();
  if (shared) {
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard lock(mutex_);  // a worker about to sleep must not miss the new generation
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  drain(0);
  for (int round = 0; shared && running_.load(std::memory_order_acquire) != 0; ++round) {
    if (round < kSpinRounds) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
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
  while (true) {
    for (int round = 0; round < kSpinRounds; ++round) {
      if (generation_.load(std::memory_order_acquire) != seen || stop_.load()) break;
      pause_cpu();
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_.load() || generation_.load() != seen; });
    }
    if (stop_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    drain(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace lola

// A fixed set of worker threads that share out the indices of one loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lola {

// Physical cores available to this process (affinity mask respected), at least 1.
int default_thread_count();

// Calls may come from several threads; their loops run one after the other.
// Workers spin for a few microseconds after a loop and then sleep, so an idle pool costs nothing.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // threads >= 1, the calling thread included
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, thread) once for each index in [0, count), thread in [0, threads()).
  // Indices are handed out dynamically. The first exception of a body is rethrown here.
  template <typename Body>
  void parallel_for(int64_t count, const Body& body) {
    if (count <= 0) return;
    run(count, &body, [](const void* context, int64_t index, int thread) {
      (*static_cast<const Body*>(context))(index, thread);
    });
  }

 private:
  using Call = void (*)(const void* context, int64_t index, int thread);

  void run(int64_t count, const void* context, Call call);
  void work(int thread);
  void drain(int thread);

  std::mutex caller_mutex_;  // one loop at a time
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};  // workers that have not finished the current loop
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
  int64_t count_ = 0;
  const void* context_ = nullptr;
  Call call_ = nullptr;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace lola

// A fixed set of worker threads that share out the indices of one loop at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace lola {

// Calls may come from several threads; their loops run one after the other.
// Nobody waits for a worker that has not begun: where other programs take the cores, the caller
// does the loop alone. Who waits, spins for some microseconds and then sleeps, so an idle pool
// costs nothing, and a sleeping caller leaves its core to a worker that lost its own.
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
  void open_loop();
  void close_loop();
  void drain(int thread);
  void work(int thread);
  bool join_next_loop(uint64_t& seen);
  void leave_loop();

  std::mutex caller_mutex_;  // one loop at a time
  std::vector<std::thread> workers_;

  // The loop's number, whether workers may still join it, whether its caller sleeps until they have
  // left, and how many are in it: one word, so that nobody joins a loop that has ended.
  alignas(64) std::atomic<uint64_t> loop_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int64_t> next_{0};

  // Set before a loop opens; read by those in it.
  alignas(64) int64_t count_ = 0;
  const void* context_ = nullptr;
  Call call_ = nullptr;

  std::mutex sleep_mutex_;
  std::condition_variable opened_;  // a loop, for workers
  std::condition_variable left_;    // by the last worker, for the caller
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace lola

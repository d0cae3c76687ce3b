// What a pass found in the logits of its sessions.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "backend/backend.h"

namespace lola {

// A GPU may still be at a pass when its sessions are given this: who asks first waits for it. Any
// thread may ask, and the executor may do anything but the next pass meanwhile.
class FoundLogits {
 public:
  // Of the latest pass of `executor`, which must be there until it is read.
  explicit FoundLogits(Executor& executor) : executor_(executor) {}

  // Waits for the pass and takes what it found; what went wrong is check()'s to tell.
  void read() noexcept;
  bool is_read() const { return is_read_; }

  // Waits, and throws what the pass failed with.
  void check();
  // Of the row-th session that keeps its logits; empty where the backend leaves the choice to the
  // sampler. Valid as long as this is.
  TopLogits row(size_t row);

 private:
  struct Row {
    TopLogits top;
    std::vector<Candidate> best;  // what top.best lies in
  };

  Executor& executor_;
  std::mutex mutex_;
  std::atomic<bool> is_read_ = false;
  std::vector<Row> rows_;
  std::exception_ptr error_;
};

}  // namespace lola

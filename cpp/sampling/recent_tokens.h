// The tokens that penalties look back on.
#pragma once

#include <cstdint>
#include <deque>
#include <map>

namespace lola {

class RecentTokens {
 public:
  // window: tokens to look back on; -1: all, of which only the counts are kept.
  explicit RecentTokens(int64_t window) : window_(window) {}

  void push(int32_t token) {
    if (window_ == 0) return;
    ++counts_[token];
    if (window_ < 0) return;
    order_.push_back(token);
    if (static_cast<int64_t>(order_.size()) > window_) drop_oldest();
  }

  // The state of an unbounded window, when it is read back.
  void set_count(int32_t token, int64_t count) { counts_[token] = count; }

  int64_t window() const { return window_; }
  const std::map<int32_t, int64_t>& counts() const { return counts_; }
  const std::deque<int32_t>& order() const {
    return order_;
  }  // oldest first; empty when all are kept

 private:
  void drop_oldest() {
    const auto oldest = counts_.find(order_.front());
    if (--oldest->second == 0) counts_.erase(oldest);
    order_.pop_front();
  }

  int64_t window_;
  std::map<int32_t, int64_t> counts_;
  std::deque<int32_t> order_;
};

}  // namespace lola

#include "models/found_logits.h"

namespace lola {

void FoundLogits::read() noexcept {
  const std::lock_guard lock(mutex_);
  if (is_read_) return;
  try {
    for (const TopLogits& top : executor_.top_logits()) {
      rows_.push_back({top, {top.best.begin(), top.best.end()}});
      rows_.back().top.best = rows_.back().best;
    }
  } catch (...) {
    error_ = std::current_exception();
  }
  is_read_ = true;
}

void FoundLogits::check() {
  read();
  if (error_) std::rethrow_exception(error_);
}

TopLogits FoundLogits::row(size_t row) {
  check();
  return row < rows_.size() ? rows_[row].top : TopLogits{};
}

}  // namespace lola

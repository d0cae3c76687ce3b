// A run of backend memory that frees itself.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace lola {

// What new memory holds; kNothing is for what is written before it is read.
enum class Fill { kZeros, kNothing };

class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, int64_t bytes, std::function<void(void*)> release)
      : data_(data, std::move(release)), bytes_(bytes) {}

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<void, std::function<void(void*)>> data_{nullptr, [](void*) {}};
  int64_t bytes_ = 0;
};

}  // namespace lola

// A file mapped into memory for reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace lola {

// The pages belong to the file: whoever cuts it short while it is mapped makes later reads fault.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // DeviceError when it cannot be mapped
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lola

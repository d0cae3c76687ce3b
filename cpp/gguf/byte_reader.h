// A cursor over untrusted bytes. Whatever it hands out is there: lengths are compared with the
// bytes that remain, and a failure names the file, the place in it, what was found and what was
// wanted.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/text.h"
#include "gguf/gguf_value.h"

namespace lola {

class ByteReader {
 public:
  ByteReader(std::span<const uint8_t> bytes, std::string_view file) : bytes_(bytes), file_(file) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }

  // What the next bytes belong to: "key number 3" until the name is set, "key 'general.name'" then.
  void enter(const char* kind, uint64_t number) {
    kind_ = kind;
    number_ = number;
    name_ = {};
  }
  void set_name(std::string_view name) { name_ = name; }

  const uint8_t* take(uint64_t count, const char* what) {
    if (count > remaining()) {
      fail(message(remaining(), " bytes at byte ", offset_), message(count, " for the ", what));
    }
    const uint8_t* data = bytes_.data() + offset_;
    offset_ += count;
    return data;
  }

  template <typename T>
  T read(const char* what) {
    return load<T>(take(sizeof(T), what));
  }

  // A count of things that take at least `bytes_each` bytes each.
  uint64_t read_count(uint64_t bytes_each, const char* what) {
    const uint64_t count = read<uint64_t>(what);
    if (count > remaining() / bytes_each) {
      fail(message(count, " as the ", what),
           message("at most ", remaining() / bytes_each, " in the ", remaining(), " bytes left"));
    }
    return count;
  }

  std::string_view read_string(const char* what) {
    const uint64_t length = read_count(1, what);
    return {reinterpret_cast<const char*>(take(length, what)), static_cast<size_t>(length)};
  }

  [[noreturn]] void fail(const std::string& found, const std::string& wanted) const {
    throw FormatError(describe_fault(found, wanted));
  }
  [[noreturn]] void fail_unsupported(const std::string& found, const std::string& wanted) const {
    throw UnsupportedError(describe_fault(found, wanted));
  }

 private:
  std::string describe_fault(const std::string& found, const std::string& wanted) const {
    const std::string place =
        name_.empty() ? message(kind_, " number ", number_) : message(kind_, " ", quote(name_));
    return message("file ", quote(file_), ", ", place, ": found ", found, ", wanted ", wanted);
  }

  std::span<const uint8_t> bytes_;
  std::string_view file_;
  uint64_t offset_ = 0;
  const char* kind_ = "";
  uint64_t number_ = 0;
  std::string_view name_;
};

}  // namespace lola

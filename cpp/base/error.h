// The four ways a public call can fail. Each is a Python exception class of its own.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lola {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller passed something that cannot be done: a bad argument, or a call in the wrong order.
class UsageError : public Error {
 public:
  using Error::Error;
};

// A file is damaged, or is not what it claims to be.
class FormatError : public Error {
 public:
  using Error::Error;
};

// A well-formed file or request that this build does not implement.
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

// The device, or the operating system, could not provide what was needed.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// Builds a message from its parts: throw FormatError(message("tensor '", name, "': found ", a)).
template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace lola

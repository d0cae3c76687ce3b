#include "base/system.h"

#include <cerrno>
#include <system_error>

#include "base/text.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

namespace lola {

#if defined(_WIN32)

std::filesystem::path native_path(const std::string& path) {
  return std::filesystem::path(std::u8string(path.begin(), path.end()));
}

std::string last_system_error() {
  const int code = static_cast<int>(GetLastError());
  return escaped(std::system_category().message(code));
}

#else

std::filesystem::path native_path(const std::string& path) { return std::filesystem::path(path); }

std::string last_system_error() {
  const int code = errno;
  return escaped(std::system_category().message(code));
}

#endif

}  // namespace lola

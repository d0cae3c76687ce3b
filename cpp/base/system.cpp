#include "base/system.h"

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "base/text.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
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

void advise_huge_pages(void*, size_t) {}
void drop_file_pages(const void*, size_t) {}

#else

namespace {

// madvise() on the whole pages inside a range. It is a hint: a failure is no error.
void advise(const void* data, size_t bytes, int advice) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

std::filesystem::path native_path(const std::string& path) { return std::filesystem::path(path); }

std::string last_system_error() {
  const int code = errno;
  return escaped(std::system_category().message(code));
}

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  advise(data, bytes, MADV_HUGEPAGE);
#endif
}

void drop_file_pages(const void* data, size_t bytes) { advise(data, bytes, MADV_DONTNEED); }

#endif

}  // namespace lola

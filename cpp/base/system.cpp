#include "base/system.h"

#include <cerrno>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
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

int64_t available_memory() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof(status);
  if (!GlobalMemoryStatusEx(&status)) return std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(status.ullAvailPageFile);
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

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");  // lines such as "MemAvailable:   123 kB"
  int64_t kibibytes = 0;
  bool known = false;
  std::string key, unit;
  for (int64_t value = 0; file >> key >> value; std::getline(file, unit)) {
    if (key != "MemAvailable:" && key != "SwapFree:") continue;
    kibibytes += value;
    known = known || key == "MemAvailable:";
  }
  return known ? kibibytes * 1024 : std::numeric_limits<int64_t>::max();
}

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  advise(data, bytes, MADV_HUGEPAGE);
#endif
}

void drop_file_pages(const void* data, size_t bytes) { advise(data, bytes, MADV_DONTNEED); }

#endif

}  // namespace lola

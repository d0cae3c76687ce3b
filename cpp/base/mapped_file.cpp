#include "base/mapped_file.h"

#include <limits>

#include "base/error.h"
#include "base/system.h"
#include "base/text.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace lola {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& found) {
  throw DeviceError(message("file ", quote(path), ": found ", found, ", wanted a readable file"));
}

size_t checked_size(const std::string& path, uint64_t bytes) {
  if (bytes > std::numeric_limits<size_t>::max()) {
    fail(path, message(bytes, " bytes, more than this process can address"));
  }
  return static_cast<size_t>(bytes);
}

#if defined(_WIN32)

class Handle {
 public:
  explicit Handle(HANDLE handle) : handle_(handle) {}
  ~Handle() {
    if (valid()) CloseHandle(handle_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  bool valid() const { return handle_ != nullptr && handle_ != INVALID_HANDLE_VALUE; }
  HANDLE get() const { return handle_; }

 private:
  HANDLE handle_;
};

#else

class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (valid()) close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  bool valid() const { return descriptor_ >= 0; }
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

#endif

}  // namespace

#if defined(_WIN32)

MappedFile::MappedFile(const std::string& path) {
  const Handle file(CreateFileW(native_path(path).c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr,
                                OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr));
  if (!file.valid()) fail(path, last_system_error());
  LARGE_INTEGER size;
  if (!GetFileSizeEx(file.get(), &size)) fail(path, last_system_error());
  size_ = checked_size(path, static_cast<uint64_t>(size.QuadPart));
  if (size_ == 0) return;  // an empty range cannot be mapped
  const Handle mapping(CreateFileMappingW(file.get(), nullptr, PAGE_READONLY, 0, 0, nullptr));
  if (!mapping.valid()) fail(path, last_system_error());
  data_ = static_cast<const uint8_t*>(MapViewOfFile(mapping.get(), FILE_MAP_READ, 0, 0, size_));
  if (data_ == nullptr) fail(path, last_system_error());
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) UnmapViewOfFile(data_);
}

#else

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must not wait for its writer.
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) fail(path, last_system_error());
  struct stat status;
  if (fstat(file.get(), &status) != 0) fail(path, last_system_error());
  if (!S_ISREG(status.st_mode)) fail(path, "a directory or device");
  size_ = checked_size(path, static_cast<uint64_t>(status.st_size));
  if (size_ == 0) return;  // an empty range cannot be mapped
  void* data = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) fail(path, last_system_error());
  data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

#endif

}  // namespace lola

#include "base/atomic_file.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

#include "base/error.h"
#include "base/system.h"
#include "base/text.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace lola {
namespace {

constexpr intptr_t kNoFile = -1;
constexpr size_t kMaxWrite = size_t{1} << 30;  // some systems refuse 2 GiB and more in one call
constexpr int kNameTries = 100;                // leftovers of a killed process may hold a name

#if defined(_WIN32)

unsigned long process_id() { return GetCurrentProcessId(); }

bool name_taken() { return GetLastError() == ERROR_FILE_EXISTS; }

// INVALID_HANDLE_VALUE is -1, that is kNoFile.
intptr_t create_new(const std::string& path) {
  return reinterpret_cast<intptr_t>(CreateFileW(native_path(path).c_str(), GENERIC_WRITE, 0,
                                                nullptr, CREATE_NEW, FILE_ATTRIBUTE_NORMAL,
                                                nullptr));
}

int64_t write_some(intptr_t file, const void* data, size_t bytes) {
  DWORD written = 0;
  const BOOL done =
      WriteFile(reinterpret_cast<HANDLE>(file), data, static_cast<DWORD>(bytes), &written, nullptr);
  return done ? static_cast<int64_t>(written) : -1;
}

bool flush(intptr_t file) { return FlushFileBuffers(reinterpret_cast<HANDLE>(file)) != 0; }

bool close_handle(intptr_t file) { return CloseHandle(reinterpret_cast<HANDLE>(file)) != 0; }

bool replace(const std::string& from, const std::string& to) {
  return MoveFileExW(native_path(from).c_str(), native_path(to).c_str(),
                     MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) != 0;
}

#else

long process_id() { return static_cast<long>(getpid()); }

bool name_taken() { return errno == EEXIST; }

intptr_t create_new(const std::string& path) {
  return open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

int64_t write_some(intptr_t file, const void* data, size_t bytes) {
  ssize_t written;
  do {
    written = ::write(static_cast<int>(file), data, bytes);
  } while (written < 0 && errno == EINTR);
  return written;
}

bool flush(intptr_t file) {
#if defined(__APPLE__)
  if (fcntl(static_cast<int>(file), F_FULLFSYNC) == 0) return true;  // fsync stops at the drive
#endif
  return fsync(static_cast<int>(file)) == 0;
}

bool close_handle(intptr_t file) { return close(static_cast<int>(file)) == 0; }

bool replace(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return false;
  // The new name is durable once its directory is. Some file systems cannot flush a directory, and
  // the file is complete either way, so a failure here is none of the caller's.
  const std::filesystem::path parent = std::filesystem::path(to).parent_path();
  const int directory = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC);
  if (directory >= 0) {
    fsync(directory);
    close(directory);
  }
  return true;
}

#endif

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), file_(kNoFile) {
  static std::atomic<uint64_t> serial{0};
  for (int attempt = 0; file_ == kNoFile; ++attempt) {
    temporary_ = message(path_, ".", process_id(), "-", serial.fetch_add(1), ".tmp");
    file_ = create_new(temporary_);
    if (file_ == kNoFile && (!name_taken() || attempt >= kNameTries)) fail("create");
  }
}

AtomicFile::~AtomicFile() {
  close_file();
  if (temporary_.empty()) return;
  std::error_code ignored;  // a destructor has nobody to tell
  std::filesystem::remove(native_path(temporary_), ignored);
}

void AtomicFile::write(const void* data, size_t bytes) {
  const uint8_t* next = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const int64_t written = write_some(file_, next, std::min(bytes, kMaxWrite));
    if (written <= 0) fail("write");
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  if (!flush(file_)) fail("flush");
  if (!close_handle(std::exchange(file_, kNoFile))) fail("close");
  if (!replace(temporary_, path_)) fail("rename");
  temporary_.clear();
}

void AtomicFile::close_file() {
  if (file_ != kNoFile) close_handle(std::exchange(file_, kNoFile));
}

void AtomicFile::fail(const char* action) const {
  const std::string reason = last_system_error();  // before another call can change it
  throw DeviceError(
      message("file ", quote(path_), ": cannot ", action, " its temporary file: ", reason));
}

}  // namespace lola

// A file that appears under its name only when it is complete.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace lola {

// Collects the bytes in a temporary file beside `path`. Every failure is a DeviceError, and without
// commit() the temporary file is removed and `path` is left as it was.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);

  // Flushes the bytes to the disk and renames the file over `path`. The last call.
  void commit();

 private:
  void close_file();
  [[noreturn]] void fail(const char* action) const;

  std::string path_;
  std::string temporary_;  // empty once renamed
  intptr_t file_;          // a descriptor, or a HANDLE
};

}  // namespace lola

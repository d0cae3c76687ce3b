// Reads GGUF v2 and v3 files (little endian, one part or split). Files are untrusted: every count
// and size is checked against the bytes that are there before anything is allocated, and each fault
// is one FormatError.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf_part.h"
#include "gguf/gguf_value.h"

namespace lola {

class GgufFile {
 public:
  // path may be any part of a split file; the other parts are found beside it. DeviceError when it
  // cannot be read, UnsupportedError for other versions, byte orders, tensor types and nested
  // arrays. The file is mapped, not read: it must not shrink while this object lives.
  static std::shared_ptr<const GgufFile> open(const std::string& path);
  // For state files in memory, tests and fuzzing: the bytes are copied.
  static std::shared_ptr<const GgufFile> parse(std::span<const uint8_t> bytes, std::string name);
  ~GgufFile();

  const std::string& path() const;  // as given
  uint64_t file_bytes() const;      // all parts together

  std::span<const GgufTensor> tensors() const;  // in file order, part after part
  const GgufTensor* find_tensor(std::string_view name) const;
  const GgufTensor& tensor(std::string_view name) const;  // FormatError when missing

  // The metadata of a split file is that of its first part.
  const std::vector<std::string>& keys() const;  // in file order
  const GgufValue* find(std::string_view key) const;

  // Typed access. `find_*` gives nothing when the key is absent; `get_*` is a FormatError then. A
  // value of another type is always a FormatError that names key, found type and wanted type.
  // Integers of any width are accepted when in range; floats must be finite. Strings may hold any
  // bytes, UTF-8 or not; the views of find_string_array live as long as this object.
  std::optional<int64_t> find_int(std::string_view key, int64_t min, int64_t max) const;
  std::optional<double> find_float(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;
  std::optional<std::vector<int64_t>> find_int_array(std::string_view key, int64_t min,
                                                     int64_t max) const;
  std::optional<std::vector<double>> find_float_array(std::string_view key) const;
  std::optional<std::vector<std::string_view>> find_string_array(std::string_view key) const;
  int64_t get_int(std::string_view key, int64_t min, int64_t max) const;
  double get_float(std::string_view key) const;
  std::string get_string(std::string_view key) const;

 private:
  struct Impl;
  explicit GgufFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lola

// Reads GGUF v2 and v3 files (little endian, one part or split). Files are untrusted: every count and size is checked
// against the bytes that are there before anything is allocated, and each fault is one FormatError.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "quant/quant_table.h"

namespace lola {

enum class GgufType : uint32_t {
  kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64
};

const char* gguf_type_name(GgufType type);

// One metadata value. Strings and arrays point into the mapped file, so a vocabulary costs nothing to open.
struct GgufValue {
  GgufType type;          // kArray for arrays
  GgufType element_type;  // of an array
  uint64_t count;         // elements of an array, 1 otherwise
  const uint8_t* data;    // first byte of the payload (of a string: its bytes; of an array: its elements)
  uint64_t bytes;         // length of the payload
};

struct GgufTensor {
  std::string name;
  const QuantFormat* format;
  std::vector<int64_t> shape;  // slowest dimension first: GGUF's order is turned round here and nowhere else
  const uint8_t* data;
  uint64_t bytes;
};

class GgufFile {
 public:
  // path may be any part of a split file; the other parts are found beside it.
  static std::shared_ptr<const GgufFile> open(const std::string& path);
  // For state files in memory, tests and fuzzing: the bytes are copied.
  static std::shared_ptr<const GgufFile> parse(std::span<const uint8_t> bytes, std::string name);
  ~GgufFile();

  const std::string& path() const;
  uint64_t file_bytes() const;  // all parts together

  std::span<const GgufTensor> tensors() const;
  const GgufTensor* find_tensor(std::string_view name) const;
  const GgufTensor& tensor(std::string_view name) const;  // FormatError when missing

  const std::vector<std::string>& keys() const;  // in file order
  const GgufValue* find(std::string_view key) const;

  // Typed access. `find_*` gives nothing when the key is absent; `get_*` is a FormatError then. A value of another type is
  // always a FormatError that names key, found type and wanted type. Integers of any width are accepted when in range.
  std::optional<int64_t> find_int(std::string_view key, int64_t min, int64_t max) const;
  std::optional<double> find_float(std::string_view key) const;  // finite, or FormatError
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;
  std::optional<std::vector<int64_t>> find_int_array(std::string_view key, int64_t min, int64_t max) const;
  std::optional<std::vector<double>> find_float_array(std::string_view key) const;
  std::optional<std::vector<std::string_view>> find_string_array(std::string_view key) const;
  int64_t get_int(std::string_view key, int64_t min, int64_t max) const;
  double get_float(std::string_view key) const;
  std::string get_string(std::string_view key) const;

 private:
  GgufFile();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lola

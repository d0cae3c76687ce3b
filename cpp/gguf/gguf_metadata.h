// The keys and values of a GGUF file, with typed access.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf_value.h"

namespace lola {

class GgufMetadata {
 public:
  GgufMetadata() = default;
  // keys and values run side by side, in file order. FormatError when a key is there twice.
  GgufMetadata(std::string file, std::vector<std::string> keys, std::vector<GgufValue> values);

  const std::vector<std::string>& keys() const { return keys_; }
  const GgufValue* find(std::string_view key) const;

  // As in GgufFile.
  std::optional<int64_t> find_int(std::string_view key, int64_t min, int64_t max) const;
  std::optional<double> find_float(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;
  std::optional<std::vector<int64_t>> find_int_array(std::string_view key, int64_t min,
                                                     int64_t max) const;
  std::optional<std::vector<double>> find_float_array(std::string_view key) const;
  std::optional<std::vector<std::string_view>> find_string_array(std::string_view key) const;

  [[noreturn]] void fail(std::string_view key, const std::string& found,
                         const std::string& wanted) const;

 private:
  const GgufValue* find_array(std::string_view key, const char* wanted,
                              bool (*accepts)(GgufType)) const;

  std::string file_;
  std::vector<std::string> keys_;
  std::vector<GgufValue> values_;
  std::vector<size_t> sorted_;  // indices of keys_, by key: no hash that a file could flood
};

}  // namespace lola

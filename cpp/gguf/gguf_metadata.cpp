#include "gguf/gguf_metadata.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/text.h"

namespace lola {
namespace {

std::string integer_range(int64_t min, int64_t max) {
  return message("an integer from ", min, " to ", max);
}

std::string at_index(uint64_t index) { return message(" at index ", index); }

}  // namespace

GgufMetadata::GgufMetadata(std::string file, std::vector<std::string> keys,
                           std::vector<GgufValue> values)
    : file_(std::move(file)),
      keys_(std::move(keys)),
      values_(std::move(values)),
      sorted_(keys_.size()) {
  std::iota(sorted_.begin(), sorted_.end(), size_t{0});
  std::sort(sorted_.begin(), sorted_.end(),
            [&](size_t a, size_t b) { return keys_[a] < keys_[b]; });
  const auto twin = std::adjacent_find(sorted_.begin(), sorted_.end(),
                                       [&](size_t a, size_t b) { return keys_[a] == keys_[b]; });
  if (twin != sorted_.end()) fail(keys_[*twin], "it twice", "each key once");
}

void GgufMetadata::fail(std::string_view key, const std::string& found,
                        const std::string& wanted) const {
  throw FormatError(
      message("file ", quote(file_), ", key ", quote(key), ": found ", found, ", wanted ", wanted));
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto at = std::lower_bound(
      sorted_.begin(), sorted_.end(), key,
      [&](size_t index, std::string_view wanted) { return keys_[index] < wanted; });
  return at != sorted_.end() && keys_[*at] == key ? &values_[*at] : nullptr;
}

std::optional<int64_t> GgufMetadata::find_int(std::string_view key, int64_t min,
                                              int64_t max) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!is_integer(value->type)) fail(key, describe(*value), integer_range(min, max));
  return visit_integer(value->type, value->data, [&](auto number) {
    if (std::cmp_less(number, min) || std::cmp_greater(number, max)) {
      fail(key, message(+number), integer_range(min, max));
    }
    return static_cast<int64_t>(number);
  });
}

std::optional<double> GgufMetadata::find_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!is_float(value->type)) fail(key, describe(*value), "f32 or f64");
  const double number = load_float(value->type, value->data);
  if (!std::isfinite(number)) fail(key, message(number), "a finite number");
  return number;
}

std::optional<bool> GgufMetadata::find_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kBool) fail(key, describe(*value), "bool");
  return *value->data != 0;
}

std::optional<std::string> GgufMetadata::find_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != GgufType::kString) fail(key, describe(*value), "string");
  return std::string(reinterpret_cast<const char*>(value->data), static_cast<size_t>(value->bytes));
}

const GgufValue* GgufMetadata::find_array(std::string_view key, const char* wanted,
                                          bool (*accepts)(GgufType)) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  if (value->type != GgufType::kArray || !accepts(value->element_type)) {
    fail(key, describe(*value), wanted);
  }
  return value;
}

std::optional<std::vector<int64_t>> GgufMetadata::find_int_array(std::string_view key, int64_t min,
                                                                 int64_t max) const {
  const GgufValue* array = find_array(key, "array of integers", is_integer);
  if (array == nullptr) return std::nullopt;
  const uint32_t step = gguf_type_bytes(array->element_type);
  std::vector<int64_t> numbers(static_cast<size_t>(array->count));
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = visit_integer(array->element_type, array->data + i * step, [&](auto number) {
      if (std::cmp_less(number, min) || std::cmp_greater(number, max)) {
        fail(key, message(+number, at_index(i)), integer_range(min, max));
      }
      return static_cast<int64_t>(number);
    });
  }
  return numbers;
}

std::optional<std::vector<double>> GgufMetadata::find_float_array(std::string_view key) const {
  const GgufValue* array = find_array(key, "array of f32 or f64", is_float);
  if (array == nullptr) return std::nullopt;
  const uint32_t step = gguf_type_bytes(array->element_type);
  std::vector<double> numbers(static_cast<size_t>(array->count));
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = load_float(array->element_type, array->data + i * step);
    if (!std::isfinite(numbers[i])) {
      fail(key, message(numbers[i], at_index(i)), "finite numbers");
    }
  }
  return numbers;
}

std::optional<std::vector<std::string_view>> GgufMetadata::find_string_array(
    std::string_view key) const {
  const GgufValue* array =
      find_array(key, "array of strings", [](GgufType type) { return type == GgufType::kString; });
  if (array == nullptr) return std::nullopt;
  std::vector<std::string_view> strings;
  strings.reserve(static_cast<size_t>(array->count));
  visit_strings(*array, [&](std::string_view text) { strings.push_back(text); });
  return strings;
}

}  // namespace lola

// One metadata value of a GGUF file, as it lies in the file.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/error.h"

namespace lola {

static_assert(std::endian::native == std::endian::little,
              "GGUF files are read in place, in little-endian order");

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

inline constexpr uint32_t kGgufTypes = 13;

const char* gguf_type_name(GgufType type);

// Bytes of a number or bool; 0 for strings and arrays.
uint32_t gguf_type_bytes(GgufType type);

// Strings and arrays point into the mapped file, so a vocabulary costs nothing to open.
struct GgufValue {
  GgufType type;          // kArray for arrays
  GgufType element_type;  // of an array; otherwise as type
  uint64_t count;         // elements of an array, 1 otherwise
  const uint8_t* data;    // the number, the string's bytes, or the array's elements
  uint64_t bytes;         // length of data
};

// "u32", or "array of 3 u32".
std::string describe(const GgufValue& value);

// Payloads have no alignment.
template <typename T>
T load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// Calls visit with the number at `data` as the C++ type it has in the file.
template <typename Visit>
auto visit_integer(GgufType type, const uint8_t* data, const Visit& visit) {
  switch (type) {
    case GgufType::kU8:
      return visit(load<uint8_t>(data));
    case GgufType::kI8:
      return visit(load<int8_t>(data));
    case GgufType::kU16:
      return visit(load<uint16_t>(data));
    case GgufType::kI16:
      return visit(load<int16_t>(data));
    case GgufType::kU32:
      return visit(load<uint32_t>(data));
    case GgufType::kI32:
      return visit(load<int32_t>(data));
    case GgufType::kU64:
      return visit(load<uint64_t>(data));
    case GgufType::kI64:
      return visit(load<int64_t>(data));
    default:
      throw UsageError("visit_integer: found another type, wanted an integer");
  }
}

inline bool is_integer(GgufType type) {
  return type <= GgufType::kI32 || type == GgufType::kU64 || type == GgufType::kI64;
}

inline bool is_float(GgufType type) { return type == GgufType::kF32 || type == GgufType::kF64; }

inline double load_float(GgufType type, const uint8_t* data) {
  return type == GgufType::kF32 ? static_cast<double>(load<float>(data)) : load<double>(data);
}

// Calls visit with each string of an array of strings, in order. Its lengths were checked when the
// file was opened.
template <typename Visit>
void visit_strings(const GgufValue& array, const Visit& visit) {
  const uint8_t* next = array.data;
  for (uint64_t i = 0; i < array.count; ++i) {
    const size_t length = static_cast<size_t>(load<uint64_t>(next));
    next += sizeof(uint64_t);
    visit(std::string_view(reinterpret_cast<const char*>(next), length));
    next += length;
  }
}

}  // namespace lola

#include "gguf/gguf_value.h"

namespace lola {
namespace {

struct TypeRow {
  const char* name;
  uint32_t bytes;
};

// In the order of the type numbers.
constexpr TypeRow kTypes[kGgufTypes] = {
    {"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
    {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

}  // namespace

const char* gguf_type_name(GgufType type) { return kTypes[static_cast<uint32_t>(type)].name; }

uint32_t gguf_type_bytes(GgufType type) { return kTypes[static_cast<uint32_t>(type)].bytes; }

std::string describe(const GgufValue& value) {
  if (value.type != GgufType::kArray) return gguf_type_name(value.type);
  return message("array of ", value.count, " ", gguf_type_name(value.element_type));
}

}  // namespace lola

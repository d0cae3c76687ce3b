// Parses any bytes as a GGUF file, then reads every value through every typed accessor, and every
// byte of every tensor.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "base/error.h"
#include "gguf/gguf_reader.h"

namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// A value of another type is a FormatError, which is one of the ways to be right.
template <typename Access>
void attempt(const Access& access) {
  try {
    access();
  } catch (const lola::FormatError&) {
  }
}

uint64_t sum(const uint8_t* data, uint64_t bytes) {
  uint64_t total = 0;
  for (uint64_t i = 0; i < bytes; ++i) total += data[i];
  return total;
}

uint64_t touch_value(const lola::GgufFile& file, const std::string& key) {
  uint64_t total = 0;
  attempt([&] { total += static_cast<uint64_t>(file.find_int(key, kMin, kMax).value()); });
  attempt([&] { total += file.find_float(key).value() > 0; });
  attempt([&] { total += file.find_bool(key).value(); });
  attempt([&] { total += file.find_string(key).value().size(); });
  attempt([&] { total += file.find_int_array(key, kMin, kMax).value().size(); });
  attempt([&] { total += file.find_float_array(key).value().size(); });
  attempt([&] {
    const auto strings = file.find_string_array(key).value();
    for (const std::string_view text : strings) {
      total += sum(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    }
  });
  const lola::GgufValue* value = file.find(key);
  return total + lola::describe(*value).size() + sum(value->data, value->bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  volatile uint64_t total = 0;  // so that no read is optimized away
  try {
    const auto file = lola::GgufFile::parse({data, size}, "fuzz");
    for (const std::string& key : file->keys()) total = total + touch_value(*file, key);
    for (const lola::GgufTensor& tensor : file->tensors()) {
      if (&file->tensor(tensor.name) != &tensor) __builtin_trap();
      total = total + sum(tensor.data, tensor.bytes);
    }
  } catch (const lola::FormatError&) {
  } catch (const lola::UnsupportedError&) {
  }
  return 0;
}

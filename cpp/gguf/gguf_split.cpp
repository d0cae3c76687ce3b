#include "gguf/gguf_split.h"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include "base/system.h"
#include "base/text.h"

namespace lola {
namespace {

constexpr int64_t kMaxParts = 65535;  // split.count is a u16

int64_t split_count(const GgufPart& part) {
  return part.metadata.find_int("split.count", 0, kMaxParts).value_or(1);
}

std::string part_suffix(int64_t number, int64_t count) {
  char text[40];
  std::snprintf(text, sizeof(text), "-%05d-of-%05d.gguf", static_cast<int>(number),
                static_cast<int>(count));
  return text;
}

// The part's own idea of its place, from 0.
int64_t split_index(const GgufPart& part, int64_t count) {
  const auto index = part.metadata.find_int("split.no", 0, count - 1);
  if (!index) part.metadata.fail("split.no", "no such key", "it in every part of a split file");
  return *index;
}

// The path without "-00001-of-00003.gguf".
std::string path_prefix(const GgufPart& part, int64_t index, int64_t count) {
  const std::string suffix = part_suffix(index + 1, count);
  if (!part.path.ends_with(suffix)) {
    throw FormatError(message("file ", quote(part.path), ": found part ", index + 1, " of ", count,
                              " of a split file, wanted a name that ends in '", suffix, "'"));
  }
  return part.path.substr(0, part.path.size() - suffix.size());
}

GgufPart open_part(const std::string& path, int64_t index, int64_t count) {
  std::error_code ignored;  // what exists and cannot be opened is reported by the opening
  if (!std::filesystem::exists(native_path(path), ignored)) {
    throw FormatError(message("file ", quote(path), ": found no such file, wanted part ", index + 1,
                              " of ", count, " of a split file"));
  }
  GgufPart part = open_gguf_part(path);
  const int64_t found_count = split_count(part);
  if (found_count != count) {
    part.metadata.fail("split.count", message(found_count),
                       message(count, ", as in the other parts"));
  }
  const int64_t found_index = split_index(part, count);
  if (found_index != index) {
    part.metadata.fail("split.no", message(found_index), message(index, ", as its name says"));
  }
  return part;
}

void check_tensor_count(const std::vector<GgufPart>& parts) {
  int64_t found = 0;
  for (const GgufPart& part : parts) found += static_cast<int64_t>(part.tensors.size());
  for (const GgufPart& part : parts) {
    constexpr const char* kKey = "split.tensors.count";
    const auto wanted = part.metadata.find_int(kKey, 0, std::numeric_limits<int64_t>::max());
    if (wanted && *wanted != found) {
      part.metadata.fail(kKey, message(*wanted), message(found, ", the tensors of all parts"));
    }
  }
}

}  // namespace

std::vector<GgufPart> open_gguf_parts(const std::string& path) {
  std::vector<GgufPart> parts;
  GgufPart given = open_gguf_part(path);
  const int64_t count = split_count(given);
  if (count <= 1) {
    parts.push_back(std::move(given));
    return parts;
  }
  const int64_t given_index = split_index(given, count);
  const std::string prefix = path_prefix(given, given_index, count);
  for (int64_t index = 0; index < count; ++index) {
    parts.push_back(index == given_index
                        ? std::move(given)
                        : open_part(prefix + part_suffix(index + 1, count), index, count));
  }
  check_tensor_count(parts);
  return parts;
}

void check_not_split(const GgufPart& part) {
  const int64_t count = split_count(part);
  if (count > 1) part.metadata.fail("split.count", message(count), "a file that is not split");
}

}  // namespace lola

#include "gguf/gguf_reader.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "base/text.h"
#include "gguf/gguf_split.h"

namespace lola {

struct GgufFile::Impl {
  Impl(std::string given_path, std::vector<GgufPart> given_parts);

  std::string path;
  std::vector<GgufPart> parts;
  uint64_t file_bytes = 0;
  std::vector<GgufTensor> tensors;
  std::vector<size_t> sorted;  // indices of tensors, by name
};

GgufFile::Impl::Impl(std::string given_path, std::vector<GgufPart> given_parts)
    : path(std::move(given_path)), parts(std::move(given_parts)) {
  for (GgufPart& part : parts) {
    file_bytes += part.bytes().size();
    std::move(part.tensors.begin(), part.tensors.end(), std::back_inserter(tensors));
  }
  sorted.resize(tensors.size());
  std::iota(sorted.begin(), sorted.end(), size_t{0});
  std::sort(sorted.begin(), sorted.end(),
            [&](size_t a, size_t b) { return tensors[a].name < tensors[b].name; });
  const auto twin = std::adjacent_find(sorted.begin(), sorted.end(), [&](size_t a, size_t b) {
    return tensors[a].name == tensors[b].name;
  });
  if (twin != sorted.end()) {
    throw FormatError(message("file ", quote(path), ", tensor ", quote(tensors[*twin].name),
                              ": found it twice, wanted each tensor once"));
  }
}

GgufFile::GgufFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GgufFile::~GgufFile() = default;

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path) {
  auto impl = std::make_unique<Impl>(path, open_gguf_parts(path));
  return std::shared_ptr<const GgufFile>(new GgufFile(std::move(impl)));
}

std::shared_ptr<const GgufFile> GgufFile::parse(std::span<const uint8_t> bytes, std::string name) {
  std::vector<GgufPart> parts;
  parts.push_back(parse_gguf_part(bytes, name));
  check_not_split(parts.front());
  auto impl = std::make_unique<Impl>(std::move(name), std::move(parts));
  return std::shared_ptr<const GgufFile>(new GgufFile(std::move(impl)));
}

const std::string& GgufFile::path() const { return impl_->path; }

uint64_t GgufFile::file_bytes() const { return impl_->file_bytes; }

std::span<const GgufTensor> GgufFile::tensors() const { return impl_->tensors; }

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const std::vector<GgufTensor>& tensors = impl_->tensors;
  const auto at = std::lower_bound(
      impl_->sorted.begin(), impl_->sorted.end(), name,
      [&](size_t index, std::string_view wanted) { return tensors[index].name < wanted; });
  return at != impl_->sorted.end() && tensors[*at].name == name ? &tensors[*at] : nullptr;
}

const GgufTensor& GgufFile::tensor(std::string_view name) const {
  const GgufTensor* found = find_tensor(name);
  if (found == nullptr) {
    throw FormatError(message("file ", quote(path()), ", tensor ", quote(name),
                              ": found no such tensor, wanted it"));
  }
  return *found;
}

const std::vector<std::string>& GgufFile::keys() const {
  return impl_->parts.front().metadata.keys();
}

const GgufValue* GgufFile::find(std::string_view key) const {
  return impl_->parts.front().metadata.find(key);
}

std::optional<int64_t> GgufFile::find_int(std::string_view key, int64_t min, int64_t max) const {
  return impl_->parts.front().metadata.find_int(key, min, max);
}

std::optional<double> GgufFile::find_float(std::string_view key) const {
  return impl_->parts.front().metadata.find_float(key);
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const {
  return impl_->parts.front().metadata.find_bool(key);
}

std::optional<std::string> GgufFile::find_string(std::string_view key) const {
  return impl_->parts.front().metadata.find_string(key);
}

std::optional<std::vector<int64_t>> GgufFile::find_int_array(std::string_view key, int64_t min,
                                                             int64_t max) const {
  return impl_->parts.front().metadata.find_int_array(key, min, max);
}

std::optional<std::vector<double>> GgufFile::find_float_array(std::string_view key) const {
  return impl_->parts.front().metadata.find_float_array(key);
}

std::optional<std::vector<std::string_view>> GgufFile::find_string_array(
    std::string_view key) const {
  return impl_->parts.front().metadata.find_string_array(key);
}

int64_t GgufFile::get_int(std::string_view key, int64_t min, int64_t max) const {
  const auto value = find_int(key, min, max);
  if (!value) impl_->parts.front().metadata.fail(key, "no such key", "an integer");
  return *value;
}

double GgufFile::get_float(std::string_view key) const {
  const auto value = find_float(key);
  if (!value) impl_->parts.front().metadata.fail(key, "no such key", "a number");
  return *value;
}

std::string GgufFile::get_string(std::string_view key) const {
  auto value = find_string(key);
  if (!value) impl_->parts.front().metadata.fail(key, "no such key", "a string");
  return std::move(*value);
}

}  // namespace lola

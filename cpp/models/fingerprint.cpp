#include "models/fingerprint.h"

#include <algorithm>

#include "base/hash.h"

namespace lola {
namespace {

constexpr uint64_t kSamplesPerTensor = 16;
constexpr uint64_t kSampleBytes = 64;

void add_tensor(Hasher& hasher, const GgufTensor& tensor) {
  hasher.add(std::string_view(tensor.name));
  hasher.add(static_cast<uint64_t>(tensor.format->type));
  for (int64_t size : tensor.shape) hasher.add(static_cast<uint64_t>(size));
  const uint64_t sample = std::min(kSampleBytes, tensor.bytes);
  for (uint64_t i = 0; i < kSamplesPerTensor; ++i) {
    const uint64_t begin = (tensor.bytes - sample) / (kSamplesPerTensor - 1) * i;
    hasher.add(tensor.data + begin, sample);
  }
}

void add_file(Hasher& hasher, const GgufFile& file) {
  for (const std::string& key : file.keys()) {
    const GgufValue* value = file.find(key);
    hasher.add(std::string_view(key));
    hasher.add(static_cast<uint64_t>(value->type));
    hasher.add(value->data, value->bytes);
  }
  for (const GgufTensor& tensor : file.tensors()) add_tensor(hasher, tensor);
}

}  // namespace

std::string fingerprint(const GgufFile& model, const GgufFile* adapter) {
  Hasher hasher;
  add_file(hasher, model);
  hasher.add(adapter != nullptr ? 1 : 0);
  if (adapter != nullptr) add_file(hasher, *adapter);
  return hasher.hex();
}

}  // namespace lola

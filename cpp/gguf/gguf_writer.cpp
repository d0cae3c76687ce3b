#include "gguf/gguf_writer.h"

#include <utility>

#include "base/atomic_file.h"
#include "base/text.h"
#include "gguf/gguf_part.h"

namespace lola {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;  // GGUF's default, so no key has to say it

uint64_t padding(uint64_t bytes) { return (kAlignment - bytes % kAlignment) % kAlignment; }

template <typename T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void append_text(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out += text;
}

void append_type(std::string& out, GgufType type) { append(out, static_cast<uint32_t>(type)); }

void check_name(const char* kind, const std::string& name, uint64_t max_bytes) {
  if (name.empty() || name.size() > max_bytes || !is_utf8(name)) {
    throw UsageError(message(kind, " ", quote(name), ": found a name of ", name.size(),
                             " bytes, wanted 1 to ", max_bytes, " bytes of UTF-8"));
  }
}

void check_new(const char* kind, const std::string& name, std::set<std::string>& names) {
  if (!names.insert(name).second) {
    throw UsageError(message(kind, " ", quote(name), ": found it twice, wanted it once"));
  }
}

// The bytes that a tensor of this shape has; 0 when no tensor can have it.
uint64_t bytes_of_shape(const QuantFormat& format, std::span<const int64_t> shape) {
  if (shape.empty() || shape.size() > kMaxGgufDimensions || shape.back() % format.block_size != 0) {
    return 0;
  }
  constexpr int64_t kMaxWeights = int64_t{1} << 56;  // times the bytes of a block fits in 64 bits
  int64_t weights = 1;
  for (const int64_t size : shape) {
    if (size < 1 || size > kMaxWeights / weights) return 0;
    weights *= size;
  }
  return static_cast<uint64_t>(weights / format.block_size) *
         static_cast<uint64_t>(format.block_bytes);
}

}  // namespace

void GgufWriter::start_key(std::string key, GgufType type) {
  check_name("key", key, kMaxGgufKey);
  check_new("key", key, keys_);
  append_text(metadata_, key);
  append_type(metadata_, type);
}

void GgufWriter::put_int(std::string key, int64_t value) {
  start_key(std::move(key), GgufType::kI64);
  append(metadata_, value);
}

void GgufWriter::put_uint(std::string key, uint64_t value) {
  start_key(std::move(key), GgufType::kU64);
  append(metadata_, value);
}

void GgufWriter::put_float(std::string key, double value) {
  start_key(std::move(key), GgufType::kF64);
  append(metadata_, value);
}

void GgufWriter::put_bool(std::string key, bool value) {
  start_key(std::move(key), GgufType::kBool);
  append<uint8_t>(metadata_, value ? 1 : 0);
}

void GgufWriter::put_string(std::string key, std::string_view value) {
  start_key(std::move(key), GgufType::kString);
  append_text(metadata_, value);
}

void GgufWriter::put_int_array(std::string key, std::span<const int64_t> values) {
  start_key(std::move(key), GgufType::kArray);
  append_type(metadata_, GgufType::kI64);
  append<uint64_t>(metadata_, values.size());
  for (const int64_t value : values) append(metadata_, value);
}

void GgufWriter::put_bytes(std::string key, std::span<const uint8_t> values) {
  start_key(std::move(key), GgufType::kArray);
  append_type(metadata_, GgufType::kU8);
  append<uint64_t>(metadata_, values.size());
  metadata_.append(reinterpret_cast<const char*>(values.data()), values.size());
}

void GgufWriter::put_value(std::string key, const GgufValue& value) {
  start_key(std::move(key), value.type);
  if (value.type == GgufType::kArray) {
    append_type(metadata_, value.element_type);
    append<uint64_t>(metadata_, value.count);
  } else if (value.type == GgufType::kString) {
    append<uint64_t>(metadata_, value.bytes);
  }
  metadata_.append(reinterpret_cast<const char*>(value.data), static_cast<size_t>(value.bytes));
}

void GgufWriter::put_tensor(std::string name, QuantType type, std::span<const int64_t> shape,
                            const void* data, uint64_t bytes) {
  add_tensor(
      {std::move(name), type, {shape.begin(), shape.end()}, bytes, [data, bytes](const Sink& sink) {
         sink(data, static_cast<size_t>(bytes));
       }});
}

void GgufWriter::put_tensor(std::string name, QuantType type, std::span<const int64_t> shape,
                            Fill fill) {
  const uint64_t bytes = bytes_of_shape(quant_format(type), shape);
  add_tensor({std::move(name), type, {shape.begin(), shape.end()}, bytes, std::move(fill)});
}

void GgufWriter::add_tensor(Tensor tensor) {
  check_name("tensor", tensor.name, kMaxGgufTensorName);
  const QuantFormat& format = quant_format(tensor.type);
  const uint64_t wanted = bytes_of_shape(format, tensor.shape);
  if (wanted == 0 || tensor.bytes != wanted) {
    throw UsageError(
        message("tensor ", quote(tensor.name), ": found ", tensor.bytes, " bytes for ",
                tensor.shape.size(), " dimensions of type ", format.name, ", wanted ",
                wanted == 0 ? "a shape of 1 to 4 whole dimensions" : message(wanted, " bytes")));
  }
  check_new("tensor", tensor.name, tensor_names_);
  tensors_.push_back(std::move(tensor));
}

std::string GgufWriter::header() const {
  std::string out = "GGUF";
  append(out, kVersion);
  append<uint64_t>(out, tensors_.size());
  append<uint64_t>(out, keys_.size());
  out += metadata_;
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    append_text(out, tensor.name);
    append(out, static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) append(out, *size);
    append(out, static_cast<uint32_t>(tensor.type));
    append(out, offset);
    offset += tensor.bytes + padding(tensor.bytes);
  }
  out.append(padding(out.size()), '\0');
  return out;
}

void GgufWriter::write(const std::string& path) const {
  constexpr char kZeros[kAlignment] = {};
  AtomicFile file(path);
  const std::string start = header();
  file.write(start.data(), start.size());
  for (const Tensor& tensor : tensors_) {
    uint64_t left = tensor.bytes;
    tensor.fill([&](const void* data, size_t bytes) {
      if (bytes > left) throw UsageError("tensor " + quote(tensor.name) + ": more than its bytes");
      file.write(data, bytes);
      left -= bytes;
    });
    if (left > 0) throw UsageError("tensor " + quote(tensor.name) + ": fewer than its bytes");
    file.write(kZeros, padding(tensor.bytes));
  }
  file.commit();
}

}  // namespace lola

#include "gguf/gguf_part.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "gguf/byte_reader.h"

namespace lola {
namespace {

// The smallest a key with its value, and a tensor's entry, can be.
constexpr uint64_t kMinKeyBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

struct TensorTypeName {
  uint32_t number;
  const char* name;
};

// Types that GGUF files may hold and no weight of a supported model has, or that were withdrawn:
// for the message.
constexpr TensorTypeName kOtherTypes[] = {
    {4, "Q4_2"},      {5, "Q4_3"},      {9, "Q8_1"},        {15, "Q8_K"},       {24, "I8"},
    {25, "I16"},      {26, "I32"},      {27, "I64"},        {28, "F64"},        {31, "Q4_0_4_4"},
    {32, "Q4_0_4_8"}, {33, "Q4_0_8_8"}, {36, "IQ4_NL_4_4"}, {37, "IQ4_NL_4_8"}, {38, "IQ4_NL_8_8"}};

std::string tensor_type_name(uint32_t number) {
  for (const TensorTypeName& row : kOtherTypes) {
    if (row.number == number) return message("type ", row.name, " (", number, ")");
  }
  return message("unknown type ", number);
}

std::string supported_types() {
  std::string names;
  for (const QuantFormat& format : quant_formats()) {
    names += message(names.empty() ? "" : ", ", format.name);
  }
  return message("one of ", names);
}

struct Header {
  uint64_t tensor_count;
  uint64_t key_count;
};

Header read_header(ByteReader& reader) {
  reader.enter("header", 0);
  reader.set_name("GGUF");
  const std::string_view magic(reinterpret_cast<const char*>(reader.take(4, "magic")), 4);
  if (magic != "GGUF") reader.fail(quote(magic), "a file that starts with 'GGUF'");
  const uint32_t version = reader.read<uint32_t>("version");
  if (version != 0 && (version & 0xFFFFu) == 0) {
    reader.fail_unsupported("a big-endian file", "little-endian GGUF version 2 or 3");
  }
  if (version != 2 && version != 3) {
    reader.fail_unsupported(message("version ", version), "GGUF version 2 or 3");
  }
  const uint64_t tensor_count = reader.read_count(kMinTensorBytes, "tensor count");
  const uint64_t key_count = reader.read_count(kMinKeyBytes, "key count");
  return {tensor_count, key_count};
}

std::string_view read_name(ByteReader& reader, uint64_t max_bytes) {
  const std::string_view name = reader.read_string("name's length");
  reader.set_name(name);
  if (name.empty() || name.size() > max_bytes) {
    reader.fail(message("a name of ", name.size(), " bytes"), message("1 to ", max_bytes));
  }
  if (!is_utf8(name)) reader.fail("a name that is not UTF-8", "a name in UTF-8");
  return name;
}

GgufType read_type(ByteReader& reader, const char* what) {
  const uint32_t type = reader.read<uint32_t>(what);
  if (type >= kGgufTypes) {
    reader.fail(message(type, " as the ", what), message("0 to ", kGgufTypes - 1));
  }
  return static_cast<GgufType>(type);
}

void check_bools(const ByteReader& reader, const uint8_t* data, uint64_t count) {
  const uint8_t* bad = std::find_if(data, data + count, [](uint8_t byte) { return byte > 1; });
  if (bad != data + count) reader.fail(message(+*bad, " as a bool"), "0 or 1");
}

GgufValue read_array(ByteReader& reader) {
  GgufValue value{GgufType::kArray, read_type(reader, "element type"), 0, nullptr, 0};
  if (value.element_type == GgufType::kArray) {
    reader.fail_unsupported("an array of arrays", "an array of numbers, bools or strings");
  }
  const bool strings = value.element_type == GgufType::kString;
  const uint64_t element_bytes = strings ? sizeof(uint64_t) : gguf_type_bytes(value.element_type);
  value.count = reader.read_count(element_bytes, "array's length");
  const uint64_t start = reader.offset();
  value.data = reader.take(0, "array");
  if (strings) {
    for (uint64_t i = 0; i < value.count; ++i) reader.read_string("string's length");
  } else {
    reader.take(value.count * element_bytes, "array");
  }
  value.bytes = reader.offset() - start;
  if (value.element_type == GgufType::kBool) check_bools(reader, value.data, value.count);
  return value;
}

GgufValue read_value(ByteReader& reader) {
  const GgufType type = read_type(reader, "value type");
  if (type == GgufType::kArray) return read_array(reader);
  GgufValue value{type, type, 1, nullptr, gguf_type_bytes(type)};
  if (type == GgufType::kString) {
    const std::string_view text = reader.read_string("string's length");
    value.data = reinterpret_cast<const uint8_t*>(text.data());
    value.bytes = text.size();
  } else {
    value.data = reader.take(value.bytes, "value");
  }
  if (type == GgufType::kBool) check_bools(reader, value.data, 1);
  return value;
}

GgufMetadata read_metadata(ByteReader& reader, uint64_t key_count, const std::string& file) {
  std::vector<std::string> keys;
  std::vector<GgufValue> values;
  for (uint64_t i = 0; i < key_count; ++i) {
    reader.enter("key", i);
    keys.emplace_back(read_name(reader, kMaxGgufKey));
    values.push_back(read_value(reader));
  }
  return GgufMetadata(file, std::move(keys), std::move(values));
}

uint64_t read_alignment(const GgufMetadata& metadata) {
  constexpr std::string_view kKey = "general.alignment";
  constexpr int64_t kDefault = 32;
  const int64_t alignment =
      metadata.find_int(kKey, kMinGgufAlignment, kMaxGgufAlignment).value_or(kDefault);
  if ((alignment & (alignment - 1)) != 0) {
    metadata.fail(kKey, message(alignment),
                  message("a power of two from ", kMinGgufAlignment, " to ", kMaxGgufAlignment));
  }
  return static_cast<uint64_t>(alignment);
}

// A tensor's entry, before it is known where the data section starts.
struct TensorEntry {
  GgufTensor tensor;  // data not set
  uint64_t offset;    // in the data section
};

std::vector<int64_t> read_shape(ByteReader& reader) {
  const uint32_t dimensions = reader.read<uint32_t>("number of dimensions");
  if (dimensions < 1 || dimensions > kMaxGgufDimensions) {
    reader.fail(message(dimensions, " dimensions"), message("1 to ", kMaxGgufDimensions));
  }
  std::vector<int64_t> shape(dimensions);
  int64_t room =
      std::numeric_limits<int64_t>::max();  // what the product may still be multiplied by
  for (uint32_t i = 0; i < dimensions; ++i) {
    const uint64_t size = reader.read<uint64_t>("dimension");
    if (size < 1 || size > static_cast<uint64_t>(room)) {
      reader.fail(message(size, " as the size of dimension ", i), message("1 to ", room));
    }
    shape[dimensions - 1 - i] = static_cast<int64_t>(size);
    room /= static_cast<int64_t>(size);
  }
  return shape;
}

uint64_t tensor_bytes(const ByteReader& reader, const QuantFormat& format,
                      const std::vector<int64_t>& shape) {
  if (shape.back() % format.block_size != 0) {
    reader.fail(message("rows of ", shape.back(), " weights"),
                message("a multiple of ", format.block_size, " for type ", format.name));
  }
  const int64_t weights =
      std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
  const uint64_t blocks = static_cast<uint64_t>(weights / format.block_size);
  const uint64_t block_bytes = static_cast<uint64_t>(format.block_bytes);
  if (blocks > reader.remaining() / block_bytes) {
    reader.fail(message(weights, " weights of type ", format.name),
                message("no more than fit in the ", reader.remaining(), " bytes left"));
  }
  return blocks * block_bytes;
}

TensorEntry read_tensor_entry(ByteReader& reader, uint64_t number, uint64_t alignment) {
  reader.enter("tensor", number);
  GgufTensor tensor{std::string(read_name(reader, kMaxGgufTensorName)), nullptr, {}, nullptr, 0};
  tensor.shape = read_shape(reader);
  const uint32_t type = reader.read<uint32_t>("type");
  tensor.format = find_quant_format(type);
  if (tensor.format == nullptr) reader.fail_unsupported(tensor_type_name(type), supported_types());
  const uint64_t offset = reader.read<uint64_t>("offset");
  if (offset % alignment != 0) {
    reader.fail(message("offset ", offset), message("a multiple of ", alignment));
  }
  tensor.bytes = tensor_bytes(reader, *tensor.format, tensor.shape);
  return {std::move(tensor), offset};
}

[[noreturn]] void fail_tensor(const std::string& file, const GgufTensor& tensor,
                              const std::string& found, const std::string& wanted) {
  throw FormatError(message("file ", quote(file), ", tensor ", quote(tensor.name), ": found ",
                            found, ", wanted ", wanted));
}

void check_no_overlap(const std::string& file, const std::vector<TensorEntry>& entries) {
  std::vector<const TensorEntry*> sorted;
  sorted.reserve(entries.size());
  for (const TensorEntry& entry : entries) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorEntry* a, const TensorEntry* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    const TensorEntry& before = *sorted[i - 1];
    if (sorted[i]->offset < before.offset + before.tensor.bytes) {
      fail_tensor(file, sorted[i]->tensor, message("offset ", sorted[i]->offset),
                  message("at least ", before.offset + before.tensor.bytes, ", where tensor ",
                          quote(before.tensor.name), " ends"));
    }
  }
}

std::vector<GgufTensor> read_tensors(ByteReader& reader, uint64_t tensor_count, uint64_t alignment,
                                     const GgufPart& part) {
  std::vector<TensorEntry> entries;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    entries.push_back(read_tensor_entry(reader, i, alignment));
  }
  const std::span<const uint8_t> bytes = part.bytes();
  const uint64_t padding = (alignment - reader.offset() % alignment) % alignment;
  const uint64_t size = padding < reader.remaining() ? reader.remaining() - padding : 0;
  const uint8_t* section = bytes.data() + (bytes.size() - size);
  for (TensorEntry& entry : entries) {
    if (entry.offset > size || entry.tensor.bytes > size - entry.offset) {
      fail_tensor(part.path, entry.tensor,
                  message(entry.tensor.bytes, " bytes at offset ", entry.offset),
                  message("data inside the section of ", size, " bytes"));
    }
    entry.tensor.data = section + entry.offset;
  }
  check_no_overlap(part.path, entries);
  std::vector<GgufTensor> tensors;
  tensors.reserve(entries.size());
  for (TensorEntry& entry : entries) tensors.push_back(std::move(entry.tensor));
  return tensors;
}

void parse(GgufPart& part) {
  ByteReader reader(part.bytes(), part.path);
  const Header header = read_header(reader);
  part.metadata = read_metadata(reader, header.key_count, part.path);
  const uint64_t alignment = read_alignment(part.metadata);
  part.tensors = read_tensors(reader, header.tensor_count, alignment, part);
}

}  // namespace

GgufPart open_gguf_part(const std::string& path) {
  GgufPart part;
  part.path = path;
  part.mapping = std::make_unique<MappedFile>(path);
  parse(part);
  return part;
}

GgufPart parse_gguf_part(std::span<const uint8_t> bytes, std::string name) {
  GgufPart part;
  part.path = std::move(name);
  part.copy.assign(bytes.begin(), bytes.end());
  parse(part);
  return part;
}

}  // namespace lola

// One GGUF file: a whole model, or one part of a split one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "gguf/gguf_metadata.h"
#include "quant/quant_table.h"

namespace lola {

struct GgufTensor {
  std::string name;
  const QuantFormat* format;
  // Slowest dimension first: GGUF's order is turned round in gguf_part.cpp and nowhere else.
  std::vector<int64_t> shape;
  const uint8_t* data;  // at a multiple of kMinGgufAlignment, so it can be read as floats
  uint64_t bytes;
};

// The specification's limits; the largest alignment is ours.
inline constexpr int64_t kMinGgufAlignment = 8;
inline constexpr int64_t kMaxGgufAlignment = int64_t{1} << 20;
inline constexpr uint64_t kMaxGgufKey = 65535;
inline constexpr uint64_t kMaxGgufTensorName = 64;
inline constexpr uint32_t kMaxGgufDimensions = 4;

struct GgufPart {
  std::string path;
  std::unique_ptr<MappedFile> mapping;  // one of these two holds the bytes
  std::vector<uint8_t> copy;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  // in file order; no two share bytes

  std::span<const uint8_t> bytes() const {
    return mapping ? mapping->bytes() : std::span<const uint8_t>(copy);
  }
};

GgufPart open_gguf_part(const std::string& path);
GgufPart parse_gguf_part(std::span<const uint8_t> bytes, std::string name);

}  // namespace lola

// The table of weight formats: one row per GGUF tensor type, each implemented by one header beside
// this file.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace lola {

// Values are the tensor type numbers of GGUF files.
enum class QuantType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
};

// Every quantized format is also a run of int8 numbers with one scale, and for some one offset, per
// group:
//   weight = scale[i / group_size] * q[i] - min[i / group_size]
// This integer form is what the dot products with int8 activations read. In float32, with each
// operation rounded, it is the decoded weight to the bit. q may be any int8: Q8_0 files can hold
// -128 (all other formats stay within -127..127), whose absolute value is no int8, only a uint8.
struct QuantFormat {
  QuantType type;
  const char* name;    // "Q4_K"
  int32_t block_size;  // weights per block
  int32_t block_bytes;
  int32_t group_size;  // weights per scale in the integer form: 16 or 32; 0 for F32, F16, BF16
  bool has_min;        // whether the integer form has offsets

  // blocks [count * block_bytes] -> out [count * block_size], bit-equal to gguf.quants.
  void (*decode)(const uint8_t* blocks, int64_t count, float* out);

  // blocks -> q [count * block_size], scale and min [count * block_size / group_size].
  // min is not written where has_min is false. Null for F32, F16, BF16.
  void (*unpack)(const uint8_t* blocks, int64_t count, int8_t* q, float* scale, float* min);

  // weights [count * block_size], finite and within float16 unless the format is F32 or BF16 ->
  // blocks, with the least squared error that a search finds. importance [count * block_size], the
  // factor of each weight's error, is finite and not negative; null: all alike. Null for formats
  // that this build only reads.
  void (*encode)(const float* weights, const float* importance, int64_t count, uint8_t* blocks);
};

std::span<const QuantFormat> quant_formats();

// Null when the number is none of the table's.
const QuantFormat* find_quant_format(uint32_t type);

// Throws UnsupportedError, naming the number.
const QuantFormat& quant_format(QuantType type);

// Throws UsageError, naming the formats.
const QuantFormat& quant_format(const std::string& name);

}  // namespace lola

// What the block formats share: reading packed numbers, and the loops over blocks.
//
// A format is a struct of byte arrays, so that a block may lie at any address of the mapped file,
// and a function
//   unpack(block, q, scale)  or, where kHasMin,  unpack(block, q, scale, min)
// that writes the integer form (quant_table.h) of one block. A format that can be written has its
// inverse beside it, pack(q, [s, [m,]] d, [dmin,] block), with d and dmin as float16 bits, and the
// ranges of its numbers, kMinQ to kMaxQ; which numbers to write is found in
// encode/. Decoding is the formula of the integer
// form in float32: for every format these are the very operations of gguf.quants, or exact
// multiples of them by a power of two.
//
// Functions here and in the formats are static, because kernels include them from files that are
// compiled for a wider instruction set, and the linker must not keep such a copy for everyone.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace lola {

static_assert(std::endian::native == std::endian::little, "GGUF data is read in place");

static inline uint16_t load_u16(const uint8_t* bytes) {
  return static_cast<uint16_t>(bytes[0] | bytes[1] << 8);
}

static inline uint32_t load_u32(const uint8_t* bytes) {
  return load_u16(bytes) | static_cast<uint32_t>(load_u16(bytes + 2)) << 16;
}

static inline void store_u16(uint16_t value, uint8_t* bytes) {
  bytes[0] = static_cast<uint8_t>(value);
  bytes[1] = static_cast<uint8_t>(value >> 8);
}

static inline void store_u32(uint32_t value, uint8_t* bytes) {
  store_u16(static_cast<uint16_t>(value), bytes);
  store_u16(static_cast<uint16_t>(value >> 16), bytes + 2);
}

static inline float load_f16(const uint8_t* bytes) { return f16_to_f32(load_u16(bytes)); }

// Arithmetic on 8 bytes at once in one integer: n * kBytes is n in each byte.
inline constexpr uint64_t kBytes = 0x0101010101010101;

static inline uint64_t load_bytes(const uint8_t* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

static inline void store_bytes(uint64_t value, int8_t* out) {
  std::memcpy(out, &value, sizeof(value));
}

// The bits of a byte, the lowest first, as 8 bytes of 0 or 1.
static inline uint64_t spread_bits(uint8_t bits) {
  const uint64_t bit_of_each_byte = bits * kBytes & 0x8040201008040201;
  return (bit_of_each_byte + 0x7F * kBytes) >> 7 & kBytes;
}

// blocks [count] -> q [count * kWeights], scale and min [count * kWeights / kGroup].
template <typename Block>
static void unpack_blocks(const uint8_t* blocks, int64_t count, int8_t* q, float* scale,
                          float* min) {
  constexpr int kGroups = Block::kWeights / Block::kGroup;
  for (int64_t i = 0; i < count; ++i) {
    // A copy, as the compiler vectorises only what cannot be the memory of q.
    Block block;
    std::memcpy(&block, blocks + i * sizeof(Block), sizeof(Block));
    if constexpr (Block::kHasMin) {
      unpack(block, q + i * Block::kWeights, scale + i * kGroups, min + i * kGroups);
    } else {
      unpack(block, q + i * Block::kWeights, scale + i * kGroups);
    }
  }
}

// blocks [count] -> out [count * kWeights].
template <typename Block>
static void decode_blocks(const uint8_t* blocks, int64_t count, float* out) {
  constexpr int kGroups = Block::kWeights / Block::kGroup;
  int8_t q[Block::kWeights];
  float scale[kGroups];
  float min[kGroups] = {};
  for (int64_t i = 0; i < count; ++i) {
    unpack_blocks<Block>(blocks + i * sizeof(Block), 1, q, scale, min);
    float* weights = out + i * Block::kWeights;
    for (int group = 0; group < kGroups; ++group) {
      for (int j = group * Block::kGroup; j < (group + 1) * Block::kGroup; ++j) {
        weights[j] = scale[group] * static_cast<float>(q[j]) - min[group];
      }
    }
  }
}

}  // namespace lola

// Q5_0: weight = d * (n - 16), n of 5 bits.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ5_0 {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr int kMinQ = -16;
  static constexpr int kMaxQ = 15;

  uint8_t d[2];    // float16
  uint8_t qh[4];   // bit i of 32: the fifth bit of weight i
  uint8_t qs[16];  // byte i: low bits of weight i low, of weight 16 + i high
};
static_assert(sizeof(BlockQ5_0) == 22);

static inline void unpack(const BlockQ5_0& block, int8_t* q, float* scale) {
  scale[0] = load_f16(block.d);
  for (int i = 0; i < 2; ++i) {
    const uint64_t nibbles = load_bytes(block.qs + i * 8);
    // n - 16 is the nibble itself with the fifth bit, and without it the nibble under 1111.
    const uint64_t low = (spread_bits(block.qh[i]) ^ kBytes) * 0xF0;
    const uint64_t high = (spread_bits(block.qh[2 + i]) ^ kBytes) * 0xF0;
    store_bytes((nibbles & 0x0F * kBytes) | low, q + i * 8);
    store_bytes((nibbles >> 4 & 0x0F * kBytes) | high, q + 16 + i * 8);
  }
}

static inline void pack(const int8_t* q, uint16_t d, BlockQ5_0* block) {
  uint32_t high = 0;
  store_u16(d, block->d);
  for (int i = 0; i < 16; ++i) {
    const int first = q[i] + 16;
    const int second = q[16 + i] + 16;
    block->qs[i] = static_cast<uint8_t>((first & 0x0F) | (second & 0x0F) << 4);
    high |= static_cast<uint32_t>(first >> 4) << i | static_cast<uint32_t>(second >> 4) << (16 + i);
  }
  store_u32(high, block->qh);
}

}  // namespace lola

// Q5_1: weight = d * n + m, n of 5 bits.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ5_1 {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr int kMinQ = 0;
  static constexpr int kMaxQ = 31;

  uint8_t d[2];    // float16
  uint8_t m[2];    // float16
  uint8_t qh[4];   // bit i of 32: the fifth bit of weight i
  uint8_t qs[16];  // byte i: low bits of weight i low, of weight 16 + i high
};
static_assert(sizeof(BlockQ5_1) == 24);

static inline void unpack(const BlockQ5_1& block, int8_t* q, float* scale, float* min) {
  scale[0] = load_f16(block.d);
  min[0] = -load_f16(block.m);
  for (int i = 0; i < 2; ++i) {
    const uint64_t nibbles = load_bytes(block.qs + i * 8);
    const uint64_t low = spread_bits(block.qh[i]) * 0x10;
    const uint64_t high = spread_bits(block.qh[2 + i]) * 0x10;
    store_bytes((nibbles & 0x0F * kBytes) | low, q + i * 8);
    store_bytes((nibbles >> 4 & 0x0F * kBytes) | high, q + 16 + i * 8);
  }
}

static inline void pack(const int8_t* q, uint16_t d, uint16_t m, BlockQ5_1* block) {
  uint32_t high = 0;
  store_u16(d, block->d);
  store_u16(m, block->m);
  for (int i = 0; i < 16; ++i) {
    block->qs[i] = static_cast<uint8_t>((q[i] & 0x0F) | (q[16 + i] & 0x0F) << 4);
    high |= static_cast<uint32_t>(q[i] >> 4) << i | static_cast<uint32_t>(q[16 + i] >> 4)
                                                        << (16 + i);
  }
  store_u32(high, block->qh);
}

}  // namespace lola

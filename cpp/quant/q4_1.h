// Q4_1: weight = d * n + m, n of 4 bits.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ4_1 {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr int kMinQ = 0;
  static constexpr int kMaxQ = 15;

  uint8_t d[2];    // float16
  uint8_t m[2];    // float16
  uint8_t qs[16];  // byte i: n of weight i low, of weight 16 + i high
};
static_assert(sizeof(BlockQ4_1) == 20);

static inline void unpack(const BlockQ4_1& block, int8_t* q, float* scale, float* min) {
  scale[0] = load_f16(block.d);
  min[0] = -load_f16(block.m);
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>(block.qs[i] & 0x0F);
    q[16 + i] = static_cast<int8_t>(block.qs[i] >> 4);
  }
}

static inline void pack(const int8_t* q, uint16_t d, uint16_t m, BlockQ4_1* block) {
  store_u16(d, block->d);
  store_u16(m, block->m);
  for (int i = 0; i < 16; ++i) block->qs[i] = static_cast<uint8_t>(q[i] | q[16 + i] << 4);
}

}  // namespace lola

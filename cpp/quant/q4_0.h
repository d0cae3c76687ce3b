// Q4_0: weight = d * (n - 8), n of 4 bits.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ4_0 {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr int kMinQ = -8;
  static constexpr int kMaxQ = 7;

  uint8_t d[2];    // float16
  uint8_t qs[16];  // byte i: n of weight i low, of weight 16 + i high
};
static_assert(sizeof(BlockQ4_0) == 18);

static inline void unpack(const BlockQ4_0& block, int8_t* q, float* scale) {
  scale[0] = load_f16(block.d);
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>((block.qs[i] & 0x0F) - 8);
    q[16 + i] = static_cast<int8_t>((block.qs[i] >> 4) - 8);
  }
}

static inline void pack(const int8_t* q, uint16_t d, BlockQ4_0* block) {
  store_u16(d, block->d);
  for (int i = 0; i < 16; ++i) {
    block->qs[i] = static_cast<uint8_t>((q[i] + 8) | (q[16 + i] + 8) << 4);
  }
}

}  // namespace lola

// IQ4_NL: weight = d * level[n], n of 4 bits: 16 levels that lie closer together near zero.
#pragma once

#include "quant/block.h"
#include "quant/iq_tables.h"

namespace lola {

struct BlockIQ4_NL {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t d[2];    // float16
  uint8_t qs[16];  // byte i: n of weight i low, of weight 16 + i high
};
static_assert(sizeof(BlockIQ4_NL) == 18);

static inline void unpack(const BlockIQ4_NL& block, int8_t* q, float* scale) {
  scale[0] = load_f16(block.d);
  for (int i = 0; i < 16; ++i) {
    q[i] = kIQ4Levels[block.qs[i] & 0x0F];
    q[16 + i] = kIQ4Levels[block.qs[i] >> 4];
  }
}

}  // namespace lola

// Q5_0: weight = d * (n - 16), n of 5 bits.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ5_0 {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t d[2];    // float16
  uint8_t qh[4];   // bit i of 32: the fifth bit of weight i
  uint8_t qs[16];  // byte i: low bits of weight i low, of weight 16 + i high
};
static_assert(sizeof(BlockQ5_0) == 22);

static inline void unpack(const BlockQ5_0& block, int8_t* __restrict q, float* __restrict scale) {
  scale[0] = load_f16(block.d);
  const uint32_t high = load_u32(block.qh);
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>((block.qs[i] & 0x0F) + (high >> i & 1) * 16 - 16);
    q[16 + i] = static_cast<int8_t>((block.qs[i] >> 4) + (high >> (16 + i) & 1) * 16 - 16);
  }
}

}  // namespace lola

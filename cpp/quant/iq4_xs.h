// IQ4_XS: weight = d * (s - 32) * level[n], the levels of IQ4_NL; s of 6 bits for each 32 weights.
#pragma once

#include "quant/block.h"
#include "quant/iq_tables.h"

namespace lola {

struct BlockIQ4_XS {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t d[2];         // float16
  uint8_t scales_h[2];  // bits 2g of 16: the high bits of s of group g
  uint8_t scales_l[4];  // byte i: the low bits of s of group 2i low, of group 2i + 1 high
  // [8, 16]: byte [g, i] holds n of weight 32 g + i low, of 32 g + 16 + i high.
  uint8_t qs[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136);

static inline void unpack(const BlockIQ4_XS& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  const int scales_h = load_u16(block.scales_h);
  for (int group = 0; group < 8; ++group) {
    const int low = block.scales_l[group / 2] >> group % 2 * 4 & 0x0F;
    const int high = scales_h >> group * 2 & 3;
    scale[group] = d * static_cast<float>(low + high * 16 - 32);
    for (int i = 0; i < 16; ++i) {
      const uint8_t byte = block.qs[group * 16 + i];
      q[group * 32 + i] = kIQ4Levels[byte & 0x0F];
      q[group * 32 + 16 + i] = kIQ4Levels[byte >> 4];
    }
  }
}

}  // namespace lola

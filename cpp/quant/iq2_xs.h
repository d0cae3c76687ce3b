// IQ2_XS: weight = d * (s + 1/2) / 4 * (a grid entry of 512, with signs); s of 4 bits for each 16
// weights.
#pragma once

#include "quant/block.h"
#include "quant/iq_grid.h"

namespace lola {

struct BlockIQ2_XS {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 16;
  static constexpr bool kHasMin = false;

  uint8_t d[2];  // float16
  // Of each 8 weights a word of 16 bits: the grid index of 9 bits, the sign index of 7.
  uint8_t qs[64];
  uint8_t scales[8];  // byte i: s of group 2i low, of group 2i + 1 high
};
static_assert(sizeof(BlockIQ2_XS) == 74);

static inline void unpack(const BlockIQ2_XS& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 16; ++group) {
    const int s = block.scales[group / 2] >> group % 2 * 4 & 0x0F;
    scale[group] = d * (0.5f + static_cast<float>(s)) * 0.25f;
  }
  for (int i = 0; i < 32; ++i) {
    const uint16_t word = load_u16(block.qs + i * 2);
    store_signed(kIQ2XSGrid[word & 0x1FF], kIQSigns[word >> 9], q + i * 8);
  }
}

}  // namespace lola

// IQ2_XXS: weight = d * (s + 1/2) / 4 * (a grid entry of 256, with signs); s of 4 bits for each 32
// weights.
#pragma once

#include "quant/block.h"
#include "quant/iq_grid.h"

namespace lola {

struct BlockIQ2_XXS {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t d[2];  // float16
  // [8, 8]: of each group 4 grid indices, then a word of 32 bits: 4 sign indices of 7 bits, and s.
  uint8_t qs[64];
};
static_assert(sizeof(BlockIQ2_XXS) == 66);

static inline void unpack(const BlockIQ2_XXS& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 8; ++group) {
    const uint8_t* entries = block.qs + group * 8;
    const uint32_t signs_and_scale = load_u32(entries + 4);
    scale[group] = d * (0.5f + static_cast<float>(signs_and_scale >> 28)) * 0.25f;
    for (int i = 0; i < 4; ++i) {
      const uint8_t signs = kIQSigns[signs_and_scale >> i * 7 & 0x7F];
      store_signed(kIQ2XXSGrid[entries[i]], signs, q + group * 32 + i * 8);
    }
  }
}

}  // namespace lola

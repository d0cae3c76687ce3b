// IQ3_XXS: weight = d * (s + 1/2) / 2 * (a grid entry of 256, with signs); s of 4 bits for each 32
// weights.
#pragma once

#include "quant/block.h"
#include "quant/iq_grid.h"

namespace lola {

struct BlockIQ3_XXS {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t d[2];    // float16
  uint8_t qs[64];  // of each 4 weights the grid index
  // Of each group a word of 32 bits: 4 sign indices of 7 bits, each for 8 weights, and s.
  uint8_t signs_and_scales[32];
};
static_assert(sizeof(BlockIQ3_XXS) == 98);

static inline void unpack(const BlockIQ3_XXS& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 8; ++group) {
    const uint8_t* entries = block.qs + group * 8;
    const uint32_t signs_and_scale = load_u32(block.signs_and_scales + group * 4);
    scale[group] = d * (0.5f + static_cast<float>(signs_and_scale >> 28)) * 0.5f;
    for (int i = 0; i < 4; ++i) {
      const uint64_t magnitudes =
          join_magnitudes(kIQ3XXSGrid[entries[2 * i]], kIQ3XXSGrid[entries[2 * i + 1]]);
      const uint8_t signs = kIQSigns[signs_and_scale >> i * 7 & 0x7F];
      store_signed(magnitudes, signs, q + group * 32 + i * 8);
    }
  }
}

}  // namespace lola

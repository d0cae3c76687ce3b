// IQ2_S: weight = d * (s + 1/2) / 4 * (a grid entry of 1024, with signs); s of 4 bits for each 16
// weights.
#pragma once

#include "quant/block.h"
#include "quant/iq_grid.h"

namespace lola {

struct BlockIQ2_S {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 16;
  static constexpr bool kHasMin = false;

  uint8_t d[2];       // float16
  uint8_t qs[32];     // of each 8 weights the low 8 bits of the grid index
  uint8_t signs[32];  // of each 8 weights the signs
  uint8_t qh[8];      // bits 2b of byte i: the high bits of grid index 4i + b
  uint8_t scales[8];  // byte i: s of group 2i low, of group 2i + 1 high
};
static_assert(sizeof(BlockIQ2_S) == 82);

static inline void unpack(const BlockIQ2_S& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 16; ++group) {
    const int s = block.scales[group / 2] >> group % 2 * 4 & 0x0F;
    scale[group] = d * (0.5f + static_cast<float>(s)) * 0.25f;
  }
  for (int i = 0; i < 32; ++i) {
    const int high = block.qh[i / 4] >> i % 4 * 2 & 3;
    store_signed(kIQ2SGrid[block.qs[i] | high << 8], block.signs[i], q + i * 8);
  }
}

}  // namespace lola

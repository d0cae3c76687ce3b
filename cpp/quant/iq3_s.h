// IQ3_S: weight = d * (2 s + 1) * (a grid entry of 512, with signs); s of 4 bits for each 32
// weights.
#pragma once

#include "quant/block.h"
#include "quant/iq_grid.h"

namespace lola {

struct BlockIQ3_S {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t d[2];       // float16
  uint8_t qs[64];     // of each 4 weights the low 8 bits of the grid index
  uint8_t qh[8];      // bit b of byte i: the ninth bit of grid index 8i + b
  uint8_t signs[32];  // of each 8 weights the signs
  uint8_t scales[4];  // byte i: s of group 2i low, of group 2i + 1 high
};
static_assert(sizeof(BlockIQ3_S) == 110);

static inline void unpack(const BlockIQ3_S& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 8; ++group) {
    const int s = block.scales[group / 2] >> group % 2 * 4 & 0x0F;
    scale[group] = d * static_cast<float>(2 * s + 1);
    const uint8_t* entries = block.qs + group * 8;
    const int high = block.qh[group];
    for (int i = 0; i < 4; ++i) {
      const int first = entries[2 * i] | (high >> 2 * i & 1) << 8;
      const int second = entries[2 * i + 1] | (high >> (2 * i + 1) & 1) << 8;
      const uint64_t magnitudes = join_magnitudes(kIQ3SGrid[first], kIQ3SGrid[second]);
      store_signed(magnitudes, block.signs[group * 4 + i], q + group * 32 + i * 8);
    }
  }
}

}  // namespace lola

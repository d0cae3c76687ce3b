// IQ1_M: weight = d * (2 s + 1) * (t + delta) as in IQ1_S; s for each 16 weights, the sign of delta
// for each 8.
#pragma once

#include "quant/block.h"
#include "quant/iq1_s.h"
#include "quant/iq_tables.h"

namespace lola {

struct BlockIQ1_M {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 16;
  static constexpr bool kHasMin = false;

  uint8_t qs[32];  // of each 8 weights the low 8 bits of the grid index
  // Of each 8 weights a nibble, low first: 3 high bits of the grid index, delta's sign.
  uint8_t qh[16];
  // 4 words of 16 bits: s of 4 groups in 3 bits each, and 4 bits of d, the lowest word first.
  uint8_t scales[8];
};
static_assert(sizeof(BlockIQ1_M) == 56);

static inline void unpack(const BlockIQ1_M& block, int8_t* q, float* scale) {
  int d_bits = 0;
  for (int i = 0; i < 4; ++i) d_bits |= load_u16(block.scales + i * 2) >> 12 << i * 4;
  const float d = f16_to_f32(static_cast<uint16_t>(d_bits));
  for (int group = 0; group < 16; ++group) {
    const int s = load_u16(block.scales + group / 4 * 2) >> group % 4 * 3 & 7;
    scale[group] = d * static_cast<float>(2 * s + 1) * 0.125f;
    for (int i = 0; i < 2; ++i) {
      const int high = block.qh[group] >> i * 4;
      const int entry = block.qs[group * 2 + i] | (high & 7) << 8;
      store_eighths(kIQ1Grid[entry], (high & 8) != 0, q + group * 16 + i * 8);
    }
  }
}

}  // namespace lola

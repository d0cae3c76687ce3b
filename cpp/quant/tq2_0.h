// TQ2_0: weight = d * (n - 1), n of 2 bits.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockTQ2_0 {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t qs[64];  // [2, 32]: byte [h, i] holds n of the weights 128 h + 32 b + i in bits 2b, b < 4
  uint8_t d[2];    // float16
};
static_assert(sizeof(BlockTQ2_0) == 66);

static inline void unpack(const BlockTQ2_0& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 8; ++group) {
    scale[group] = d;
    const uint8_t* qs = block.qs + group / 4 * 32;
    const int shift = group % 4 * 2;
    for (int i = 0; i < 32; ++i) q[group * 32 + i] = static_cast<int8_t>((qs[i] >> shift & 3) - 1);
  }
}

}  // namespace lola

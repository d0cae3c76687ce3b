// IQ1_S: weight = d * (2 s + 1) * (t + delta), t of a grid entry of -1, 0 and 1, delta of +1/8 or
// -1/8; s and the sign of delta for each 32 weights.
#pragma once

#include "quant/block.h"
#include "quant/iq_tables.h"

namespace lola {

struct BlockIQ1_S {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t d[2];    // float16
  uint8_t qs[32];  // of each 8 weights the low 8 bits of the grid index
  // Of each group a word of 16 bits: 3 high bits of 4 grid indices, s of 3 bits, delta's sign.
  uint8_t qh[16];
};
static_assert(sizeof(BlockIQ1_S) == 50);

// The integer form of IQ1 in eighths. An entry of kIQ1Grid, delta in eighths -> q [8]
static inline void store_eighths(uint64_t entry, int delta, int8_t* __restrict q) {
  for (int i = 0; i < 8; ++i) {
    q[i] = static_cast<int8_t>(8 * static_cast<int8_t>(entry >> i * 8) + delta);
  }
}

static inline void unpack(const BlockIQ1_S& block, int8_t* __restrict q, float* __restrict scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 8; ++group) {
    const int high = load_u16(block.qh + group * 2);
    scale[group] = d * static_cast<float>(2 * (high >> 12 & 7) + 1) * 0.125f;
    const int delta = high & 0x8000 ? -1 : 1;
    for (int i = 0; i < 4; ++i) {
      const int entry = block.qs[group * 4 + i] | (high >> i * 3 & 7) << 8;
      store_eighths(kIQ1Grid[entry], delta, q + group * 32 + i * 8);
    }
  }
}

}  // namespace lola

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

// An entry of kIQ1Grid -> q [8] in eighths: 8 t + 1, or 8 t - 1 where `negative`.
static inline void store_eighths(uint64_t entry, bool negative, int8_t* q) {
  const uint64_t plus_one = (entry << 3 & 0xF8 * kBytes) | kBytes;
  // Less 2 in each byte. The byte's top bit is set before and put right after, so that none borrows
  // from the next.
  const uint64_t minus_one =
      ((plus_one | 0x80 * kBytes) - 2 * kBytes) ^ (~plus_one & 0x80 * kBytes);
  store_bytes(negative ? minus_one : plus_one, q);
}

static inline void unpack(const BlockIQ1_S& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 8; ++group) {
    const int high = load_u16(block.qh + group * 2);
    scale[group] = d * static_cast<float>(2 * (high >> 12 & 7) + 1) * 0.125f;
    const bool negative = (high & 0x8000) != 0;
    for (int i = 0; i < 4; ++i) {
      const int entry = block.qs[group * 4 + i] | (high >> i * 3 & 7) << 8;
      store_eighths(kIQ1Grid[entry], negative, q + group * 32 + i * 8);
    }
  }
}

}  // namespace lola

// Q6_K: weight = d * s * (n - 32), n of 6 bits; s of 8 bits, signed, for each 16 weights.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ6_K {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 16;
  static constexpr bool kHasMin = false;
  static constexpr int kMinQ = -32;
  static constexpr int kMaxQ = 31;
  static constexpr int kMinScale = -128;
  static constexpr int kMaxScale = 127;

  // [2, 64]: byte [h, i] holds the low bits of weight 128 h + i low, of 128 h + 64 + i high.
  uint8_t ql[128];
  // [2, 32]: byte [h, i] holds the high bits of the weights 128 h + 32 b + i in bits 2b, b < 4.
  uint8_t qh[64];
  int8_t scales[16];
  uint8_t d[2];  // float16
};
static_assert(sizeof(BlockQ6_K) == 210);

static inline void unpack(const BlockQ6_K& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 16; ++group) {
    scale[group] = d * static_cast<float>(block.scales[group]);
  }
  for (int run = 0; run < 8; ++run) {
    const uint8_t* ql = block.ql + run / 4 * 64 + run % 2 * 32;
    const uint8_t* qh = block.qh + run / 4 * 32;
    const int low_shift = run % 4 / 2 * 4;
    const int high_shift = run % 4 * 2;
    for (int i = 0; i < 32; ++i) {
      const int low = ql[i] >> low_shift & 0x0F;
      const int high = qh[i] >> high_shift & 3;
      q[run * 32 + i] = static_cast<int8_t>(low + high * 16 - 32);
    }
  }
}

// s [16]
static inline void pack(const int8_t* q, const int* s, uint16_t d, BlockQ6_K* block) {
  *block = {};
  store_u16(d, block->d);
  for (int group = 0; group < 16; ++group) block->scales[group] = static_cast<int8_t>(s[group]);
  for (int run = 0; run < 8; ++run) {
    uint8_t* ql = block->ql + run / 4 * 64 + run % 2 * 32;
    uint8_t* qh = block->qh + run / 4 * 32;
    for (int i = 0; i < 32; ++i) {
      const int n = q[run * 32 + i] + 32;
      ql[i] |= static_cast<uint8_t>((n & 0x0F) << run % 4 / 2 * 4);
      qh[i] |= static_cast<uint8_t>((n >> 4) << run % 4 * 2);
    }
  }
}

}  // namespace lola

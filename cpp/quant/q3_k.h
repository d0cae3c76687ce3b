// Q3_K: weight = d * (s - 32) * (n - 4), n of 3 bits; s of 6 bits for each 16 weights.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ3_K {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 16;
  static constexpr bool kHasMin = false;
  static constexpr int kMinQ = -4;
  static constexpr int kMaxQ = 3;
  static constexpr int kMinScale = -32;
  static constexpr int kMaxScale = 31;

  // Byte i holds the third bit of the weights 32 b + i in bit b, b < 8.
  uint8_t hmask[32];
  // [2, 32]: byte [h, i] holds the low bits of the weights 128 h + 32 b + i in bits 2b, b < 4.
  uint8_t qs[64];
  // 8 bytes of low nibbles (groups 0-7 low, 8-15 high), then 4 bytes of high bits (group 4 b + i in
  // bits 2b of byte i).
  uint8_t scales[12];
  uint8_t d[2];  // float16
};
static_assert(sizeof(BlockQ3_K) == 110);

static inline void unpack(const BlockQ3_K& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 16; ++group) {
    const int low = block.scales[group % 8] >> group / 8 * 4 & 0x0F;
    const int high = block.scales[8 + group % 4] >> group / 4 * 2 & 3;
    scale[group] = d * static_cast<float>(low + high * 16 - 32);
  }
  for (int run = 0; run < 8; ++run) {
    const uint8_t* qs = block.qs + run / 4 * 32;
    const int shift = run % 4 * 2;
    for (int i = 0; i < 32; ++i) {
      const int low = qs[i] >> shift & 3;
      const int high = block.hmask[i] >> run & 1;
      q[run * 32 + i] = static_cast<int8_t>(low + high * 4 - 4);
    }
  }
}

// s [16]
static inline void pack(const int8_t* q, const int* s, uint16_t d, BlockQ3_K* block) {
  *block = {};
  store_u16(d, block->d);
  for (int group = 0; group < 16; ++group) {
    const int scale = s[group] + 32;
    block->scales[group % 8] |= static_cast<uint8_t>((scale & 0x0F) << group / 8 * 4);
    block->scales[8 + group % 4] |= static_cast<uint8_t>((scale >> 4) << group / 4 * 2);
  }
  for (int run = 0; run < 8; ++run) {
    uint8_t* qs = block->qs + run / 4 * 32;
    for (int i = 0; i < 32; ++i) {
      const int n = q[run * 32 + i] + 4;
      qs[i] |= static_cast<uint8_t>((n & 3) << run % 4 * 2);
      block->hmask[i] |= static_cast<uint8_t>((n >> 2) << run);
    }
  }
}

}  // namespace lola

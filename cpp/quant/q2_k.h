// Q2_K: weight = d * s * n - dmin * m, n of 2 bits; s and m of 4 bits for each 16 weights.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ2_K {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 16;
  static constexpr bool kHasMin = true;
  static constexpr int kMinQ = 0;
  static constexpr int kMaxQ = 3;
  static constexpr int kMinScale = 0;
  static constexpr int kMaxScale = 15;

  uint8_t scales[16];  // byte g: s of group g low, m high
  // [2, 32]: byte [h, i] holds n of the weights 128 h + 32 b + i in bits 2b, b < 4.
  uint8_t qs[64];
  uint8_t d[2];     // float16
  uint8_t dmin[2];  // float16
};
static_assert(sizeof(BlockQ2_K) == 84);

static inline void unpack(const BlockQ2_K& block, int8_t* q, float* scale, float* min) {
  const float d = load_f16(block.d);
  const float dmin = load_f16(block.dmin);
  for (int group = 0; group < 16; ++group) {
    scale[group] = d * static_cast<float>(block.scales[group] & 0x0F);
    min[group] = dmin * static_cast<float>(block.scales[group] >> 4);
  }
  for (int run = 0; run < 8; ++run) {
    const uint8_t* qs = block.qs + run / 4 * 32;
    const int shift = run % 4 * 2;
    for (int i = 0; i < 32; ++i) q[run * 32 + i] = static_cast<int8_t>(qs[i] >> shift & 3);
  }
}

// s and m [16]
static inline void pack(const int8_t* q, const int* s, const int* m, uint16_t d, uint16_t dmin,
                        BlockQ2_K* block) {
  store_u16(d, block->d);
  store_u16(dmin, block->dmin);
  for (int group = 0; group < 16; ++group) {
    block->scales[group] = static_cast<uint8_t>(s[group] | m[group] << 4);
  }
  for (int half = 0; half < 2; ++half) {
    const int8_t* run = q + half * 128;
    for (int i = 0; i < 32; ++i) {
      block->qs[half * 32 + i] =
          static_cast<uint8_t>(run[i] | run[32 + i] << 2 | run[64 + i] << 4 | run[96 + i] << 6);
    }
  }
}

}  // namespace lola

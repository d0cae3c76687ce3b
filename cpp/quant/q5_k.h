// Q5_K: weight = d * s * n - dmin * m, n of 5 bits; s and m of 6 bits for each 32 weights, packed
// as in Q4_K.
#pragma once

#include "quant/block.h"
#include "quant/q4_k.h"

namespace lola {

struct BlockQ5_K {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr int kMinQ = 0;
  static constexpr int kMaxQ = 31;
  static constexpr int kMinScale = 0;
  static constexpr int kMaxScale = 63;

  uint8_t d[2];        // float16
  uint8_t dmin[2];     // float16
  uint8_t scales[12];  // see unpack_scales_k
  // Byte i holds the fifth bit of the weights 32 b + i in bit b, b < 8.
  uint8_t qh[32];
  // [4, 32]: byte [p, i] holds the low bits of weight 64 p + i low, of 64 p + 32 + i high.
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

static inline void unpack(const BlockQ5_K& block, int8_t* q, float* scale, float* min) {
  unpack_scales_k(block.scales, load_f16(block.d), load_f16(block.dmin), scale, min);
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      const uint8_t low = block.qs[pair * 32 + i];
      const int high = block.qh[i] >> pair * 2;
      q[pair * 64 + i] = static_cast<int8_t>((low & 0x0F) | (high & 1) << 4);
      q[pair * 64 + 32 + i] = static_cast<int8_t>(low >> 4 | (high & 2) << 3);
    }
  }
}

// s and m [8]
static inline void pack(const int8_t* q, const int* s, const int* m, uint16_t d, uint16_t dmin,
                        BlockQ5_K* block) {
  *block = {};
  store_u16(d, block->d);
  store_u16(dmin, block->dmin);
  pack_scales_k(s, m, block->scales);
  for (int pair = 0; pair < 4; ++pair) {
    const int8_t* run = q + pair * 64;
    for (int i = 0; i < 32; ++i) {
      const int high = run[i] >> 4 | run[32 + i] >> 4 << 1;
      block->qs[pair * 32 + i] = static_cast<uint8_t>((run[i] & 0x0F) | (run[32 + i] & 0x0F) << 4);
      block->qh[i] |= static_cast<uint8_t>(high << pair * 2);
    }
  }
}

}  // namespace lola

// Q4_K: weight = d * s * n - dmin * m, n of 4 bits; s and m of 6 bits for each 32 weights.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockQ4_K {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr int kMinQ = 0;
  static constexpr int kMaxQ = 15;
  static constexpr int kMinScale = 0;
  static constexpr int kMaxScale = 63;

  uint8_t d[2];        // float16
  uint8_t dmin[2];     // float16
  uint8_t scales[12];  // see unpack_scales_k
  // [4, 32]: byte [p, i] holds n of weight 64 p + i low, of 64 p + 32 + i high.
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

// The six-bit s and m of Q4_K and Q5_K, times d and dmin. The 12 bytes are three rows of four: s of
// the groups 0-3, m of the groups 0-3, and the low nibbles of s (low) and m (high) of the groups
// 4-7, whose upper two bits top the first rows. scales [12] -> scale [8], min [8]
static inline void unpack_scales_k(const uint8_t* scales, float d, float dmin, float* scale,
                                   float* min) {
  for (int i = 0; i < 4; ++i) {
    const int s = scales[i];
    const int m = scales[4 + i];
    const int low = scales[8 + i];
    scale[i] = d * static_cast<float>(s & 0x3F);
    min[i] = dmin * static_cast<float>(m & 0x3F);
    scale[4 + i] = d * static_cast<float>((low & 0x0F) | (s >> 6) << 4);
    min[4 + i] = dmin * static_cast<float>(low >> 4 | (m >> 6) << 4);
  }
}

static inline void unpack(const BlockQ4_K& block, int8_t* q, float* scale, float* min) {
  unpack_scales_k(block.scales, load_f16(block.d), load_f16(block.dmin), scale, min);
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = block.qs[pair * 32 + i];
      q[pair * 64 + i] = static_cast<int8_t>(byte & 0x0F);
      q[pair * 64 + 32 + i] = static_cast<int8_t>(byte >> 4);
    }
  }
}

// The inverse of unpack_scales_k. s and m [8] -> scales [12]
static inline void pack_scales_k(const int* s, const int* m, uint8_t* scales) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = static_cast<uint8_t>(s[i] | (s[4 + i] >> 4) << 6);
    scales[4 + i] = static_cast<uint8_t>(m[i] | (m[4 + i] >> 4) << 6);
    scales[8 + i] = static_cast<uint8_t>((s[4 + i] & 0x0F) | (m[4 + i] & 0x0F) << 4);
  }
}

// s and m [8]
static inline void pack(const int8_t* q, const int* s, const int* m, uint16_t d, uint16_t dmin,
                        BlockQ4_K* block) {
  store_u16(d, block->d);
  store_u16(dmin, block->dmin);
  pack_scales_k(s, m, block->scales);
  for (int pair = 0; pair < 4; ++pair) {
    const int8_t* run = q + pair * 64;
    for (int i = 0; i < 32; ++i) {
      block->qs[pair * 32 + i] = static_cast<uint8_t>(run[i] | run[32 + i] << 4);
    }
  }
}

}  // namespace lola

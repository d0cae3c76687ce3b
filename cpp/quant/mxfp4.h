// MXFP4: weight = 2^(e - 127) * f, f a float of 4 bits (E2M1). The integer form holds 2 f, and half
// the scale.
#pragma once

#include <bit>

#include "quant/block.h"

namespace lola {

// Twice the values of an E2M1 float.
inline constexpr int8_t kTwiceE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct BlockMXFP4 {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t e;
  uint8_t qs[16];  // byte i: f of weight i low, of weight 16 + i high
};
static_assert(sizeof(BlockMXFP4) == 17);

// 2^(exponent - 128)
static inline float half_of_e8m0(uint8_t exponent) {
  // The two smallest are subnormal floats.
  const uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (exponent - 1u) << 23;
  return std::bit_cast<float>(bits);
}

static inline void unpack(const BlockMXFP4& block, int8_t* q, float* scale) {
  scale[0] = half_of_e8m0(block.e);
  for (int i = 0; i < 16; ++i) {
    q[i] = kTwiceE2M1[block.qs[i] & 0x0F];
    q[16 + i] = kTwiceE2M1[block.qs[i] >> 4];
  }
}

}  // namespace lola

// NVFP4: weight = s * f, f a float of 4 bits (E2M1), s of 8 bits (E4M3 without sign) for each 16
// weights. The integer form holds 2 f, and half of s.
#pragma once

#include "quant/block.h"
#include "quant/mxfp4.h"

namespace lola {

struct BlockNVFP4 {
  static constexpr int kWeights = 64;
  static constexpr int kGroup = 16;
  static constexpr bool kHasMin = false;

  uint8_t scales[4];
  // [4, 8]: byte [g, i] holds f of weight 16 g + i low, of weight 16 g + 8 + i high.
  uint8_t qs[32];
};
static_assert(sizeof(BlockNVFP4) == 36);

// Half the value of an E4M3 float, its sign ignored. 0x7F, the NaN of E4M3, stands for 0.
static inline float half_of_ue4m3(uint8_t bits) {
  const uint32_t exponent = bits >> 3 & 0x0F;
  const uint32_t mantissa = bits & 7;
  if (bits == 0x7F) return 0.0f;
  if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-10f;
  return std::bit_cast<float>((exponent + 127 - 8) << 23 | mantissa << 20);
}

static inline void unpack(const BlockNVFP4& block, int8_t* q, float* scale) {
  for (int group = 0; group < 4; ++group) {
    scale[group] = half_of_ue4m3(block.scales[group]);
    for (int i = 0; i < 8; ++i) {
      const uint8_t byte = block.qs[group * 8 + i];
      q[group * 16 + i] = kTwiceE2M1[byte & 0x0F];
      q[group * 16 + 8 + i] = kTwiceE2M1[byte >> 4];
    }
  }
}

}  // namespace lola

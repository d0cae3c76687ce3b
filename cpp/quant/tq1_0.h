// TQ1_0: weight = d * t, t of -1, 0 and 1. A byte holds five of t + 1 as the digits, base 3, of a
// fraction of 256.
#pragma once

#include "quant/block.h"

namespace lola {

struct BlockTQ1_0 {
  static constexpr int kWeights = 256;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;

  uint8_t qs[48];  // byte i < 32: of the weights 32 b + i, b < 5; byte 32 + i: of 160 + 16 b + i
  uint8_t qh[4];   // byte i: of the weights 240 + 4 b + i, b < 4
  uint8_t d[2];    // float16
};
static_assert(sizeof(BlockTQ1_0) == 54);

// The digits of `bytes` bytes, the first digit of all, then the second of all: q [digits, bytes].
template <int digits, int bytes>
static void unpack_ternary(const uint8_t* packed, int8_t* q) {
  constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  for (int digit = 0; digit < digits; ++digit) {
    for (int i = 0; i < bytes; ++i) {
      const uint8_t fraction = static_cast<uint8_t>(packed[i] * kPowers[digit]);
      q[digit * bytes + i] = static_cast<int8_t>((fraction * 3 >> 8) - 1);
    }
  }
}

static inline void unpack(const BlockTQ1_0& block, int8_t* q, float* scale) {
  const float d = load_f16(block.d);
  for (int group = 0; group < 8; ++group) scale[group] = d;
  unpack_ternary<5, 32>(block.qs, q);
  unpack_ternary<5, 16>(block.qs + 32, q + 160);
  unpack_ternary<4, 4>(block.qh, q + 240);
}

}  // namespace lola

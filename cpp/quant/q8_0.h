// Q8_0: weight = d * q, q of 8 bits. A file may hold q = -128, though quantizers write -127..127.
#pragma once

#include <cstring>

#include "quant/block.h"

namespace lola {

struct BlockQ8_0 {
  static constexpr int kWeights = 32;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr int kMinQ = -127;
  static constexpr int kMaxQ = 127;

  uint8_t d[2];  // float16
  int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

static inline void unpack(const BlockQ8_0& block, int8_t* q, float* scale) {
  scale[0] = load_f16(block.d);
  std::memcpy(q, block.qs, sizeof(block.qs));
}

static inline void pack(const int8_t* q, uint16_t d, BlockQ8_0* block) {
  store_u16(d, block->d);
  std::memcpy(block->qs, q, sizeof(block->qs));
}

}  // namespace lola

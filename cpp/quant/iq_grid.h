// What the IQ2 and IQ3 formats share: a grid entry is the magnitudes of 8 weights, and a byte has
// their signs.
#pragma once

#include <cstdint>
#include <cstring>

#include "quant/iq_tables.h"

namespace lola {

// magnitudes: 8 bytes of 1..127 -> q [8], weight i negated where bit i of signs is set.
static inline void store_signed(uint64_t magnitudes, uint8_t signs, int8_t* q) {
  constexpr uint64_t kOnes = 0x0101010101010101;
  const uint64_t bit_of_each_byte = signs * kOnes & 0x8040201008040201;
  const uint64_t negative = (bit_of_each_byte + 0x7F * kOnes) >> 7 & kOnes;
  // Two's complement within each byte: no carry leaves a byte, since no magnitude is 0.
  const uint64_t result = (magnitudes ^ negative * 0xFF) + negative;
  std::memcpy(q, &result, sizeof(result));
}

// Two entries of an IQ3 grid as the magnitudes of 8 weights.
static inline uint64_t join_magnitudes(uint32_t first, uint32_t second) {
  return first | static_cast<uint64_t>(second) << 32;
}

}  // namespace lola

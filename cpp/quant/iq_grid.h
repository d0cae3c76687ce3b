// What the IQ2 and IQ3 formats share: a grid entry is the magnitudes of 8 weights, and a byte has
// their signs.
#pragma once

#include <cstdint>

#include "quant/block.h"
#include "quant/iq_tables.h"

namespace lola {

// magnitudes: 8 bytes of 1..127 -> q [8], weight i negated where bit i of signs is set.
static inline void store_signed(uint64_t magnitudes, uint8_t signs, int8_t* q) {
  const uint64_t negative = spread_bits(signs);
  // Two's complement within each byte: no carry leaves a byte, since no magnitude is 0.
  store_bytes((magnitudes ^ negative * 0xFF) + negative, q);
}

// Two entries of an IQ3 grid as the magnitudes of 8 weights.
static inline uint64_t join_magnitudes(uint32_t first, uint32_t second) {
  return first | static_cast<uint64_t>(second) << 32;
}

}  // namespace lola

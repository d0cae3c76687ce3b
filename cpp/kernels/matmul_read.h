// How the common formats are read from a panel, over the vector type V of an instruction set:
// V::Words holds the same word (four bytes) of V::kLanes rows, V::Floats a float of each. Other
// formats are unpacked through their table row first. Only matmul_tile.h includes this.
//
// A reader stands on one block of some rows of a panel and gives, for each group g of weights with
// one scale,
//   weight = scale(g) * (q - kOffset) - min(g),   q from quants(g), in [0, kMaxQ], four to a word;
// kMaxQ is 0 where q is signed and may be any int8.
#pragma once

#include "kernels/matmul_plain.h"
#include "quant/iq4_nl.h"

namespace lola {
namespace {

// The odd bytes and the words of a block, at the first of the rows that are read.
struct BlockRows {
  const uint8_t* odd;
  const uint8_t* words;
};

template <int kGroupSize_, int kGroups_, int kMaxQ_, int kOffset_ = 0, bool kHasMin_ = false>
struct BlockReader {
  static constexpr int kGroupSize = kGroupSize_;
  static constexpr int kGroups = kGroups_;  // of a block
  static constexpr int kMaxQ = kMaxQ_;
  static constexpr int kOffset = kOffset_;
  static constexpr bool kHasMin = kHasMin_;

  BlockRows block;
};

template <typename V>
LOLA_INLINE typename V::Words line(const BlockRows& block, int index) {
  return V::load(block.words + index * kLineBytes);
}

// The bits `bits` of each byte, `shift` places to the right.
template <typename V>
LOLA_INLINE typename V::Words field(typename V::Words words, int shift, uint32_t bits) {
  return V::bit_and(V::shift_right(words, shift), V::splat_word(bits * 0x01010101u));
}

// One byte or less of each word, as a float.
template <typename V>
LOLA_INLINE typename V::Floats small_number(typename V::Words words, int shift, uint32_t bits) {
  return V::to_float(V::bit_and(V::shift_right(words, shift), V::splat_word(bits)));
}

// The fifth bits of four weights, bits [first, first + 4) of a word, each in its byte.
template <typename V>
LOLA_INLINE typename V::Words fifth_bits(typename V::Words bits, int first) {
  const auto four = V::bit_and(V::shift_right(bits, first), V::splat_word(0x0F));
  return V::shift_left(field<V>(V::multiply_words(four, V::splat_word(0x00204081)), 0, 1), 4);
}

template <typename V>
struct ReadQ4_0 : BlockReader<32, 1, 15, 8> {
  LOLA_INLINE void quants(int, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto nibbles = line<V>(block, i);
      q[i] = field<V>(nibbles, 0, 0x0F);
      q[4 + i] = field<V>(nibbles, 4, 0x0F);
    }
  }
  LOLA_INLINE typename V::Floats scale(int) const { return V::halves(block.odd); }
};

template <typename V>
struct ReadQ4_1 : BlockReader<32, 1, 15, 0, true> {
  LOLA_INLINE void quants(int, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto nibbles = line<V>(block, 1 + i);
      q[i] = field<V>(nibbles, 0, 0x0F);
      q[4 + i] = field<V>(nibbles, 4, 0x0F);
    }
  }
  LOLA_INLINE typename V::Floats scale(int) const { return V::low_halves(line<V>(block, 0)); }
  LOLA_INLINE typename V::Floats min(int) const {
    const auto negative = V::bit_xor(line<V>(block, 0), V::splat_word(0x80000000u));
    return V::low_halves(V::shift_right(negative, 16));
  }
};

template <typename V>
struct ReadQ5_0 : BlockReader<32, 1, 31, 16> {
  LOLA_INLINE void quants(int, typename V::Words* q) const {
    const auto fifth = line<V>(block, 0);
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto nibbles = line<V>(block, 1 + i);
      q[i] = V::bit_or(field<V>(nibbles, 0, 0x0F), fifth_bits<V>(fifth, i * 4));
      q[4 + i] = V::bit_or(field<V>(nibbles, 4, 0x0F), fifth_bits<V>(fifth, 16 + i * 4));
    }
  }
  LOLA_INLINE typename V::Floats scale(int) const { return V::halves(block.odd); }
};

template <typename V>
struct ReadQ8_0 : BlockReader<32, 1, 0> {
  LOLA_INLINE void quants(int, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 8; ++i) q[i] = line<V>(block, i);
  }
  LOLA_INLINE typename V::Floats scale(int) const { return V::halves(block.odd); }
};

template <typename V>
struct ReadIQ4_NL : BlockReader<32, 1, 0> {
  LOLA_INLINE void quants(int, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto nibbles = line<V>(block, i);
      q[i] = V::lookup(kIQ4Levels, field<V>(nibbles, 0, 0x0F));
      q[4 + i] = V::lookup(kIQ4Levels, field<V>(nibbles, 4, 0x0F));
    }
  }
  LOLA_INLINE typename V::Floats scale(int) const { return V::halves(block.odd); }
};

template <typename V>
struct ReadIQ4_XS : BlockReader<32, 8, 0> {
  LOLA_INLINE void quants(int g, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto nibbles = line<V>(block, 2 + g * 4 + i);
      q[i] = V::lookup(kIQ4Levels, field<V>(nibbles, 0, 0x0F));
      q[4 + i] = V::lookup(kIQ4Levels, field<V>(nibbles, 4, 0x0F));
    }
  }
  LOLA_INLINE typename V::Floats scale(int g) const {
    const auto head = line<V>(block, 0);
    const auto low = small_number<V>(line<V>(block, 1), g * 4, 0x0F);
    const auto high = small_number<V>(head, 16 + g * 2, 3);
    const auto six = V::multiply_add(high, V::splat(16.0f), V::subtract(low, V::splat(32.0f)));
    return V::multiply(V::low_halves(head), six);
  }
};

// The six-bit s (word 1) or m (word 2) of group g of Q4_K and Q5_K; see quant/q4_k.h.
template <typename V>
LOLA_INLINE typename V::Floats six_bits_k(const BlockRows& block, int word, int g) {
  if (g < 4) return small_number<V>(line<V>(block, word), g * 8, 0x3F);
  const auto low = field<V>(line<V>(block, 3), word == 1 ? 0 : 4, 0x0F);
  const auto top = V::shift_left(field<V>(line<V>(block, word), 6, 3), 4);
  return small_number<V>(V::bit_or(low, top), (g - 4) * 8, 0x3F);
}

template <typename V>
LOLA_INLINE typename V::Floats scale_k(const BlockRows& block, int g) {
  return V::multiply(six_bits_k<V>(block, 1, g), V::low_halves(line<V>(block, 0)));
}

template <typename V>
LOLA_INLINE typename V::Floats min_k(const BlockRows& block, int g) {
  const auto dmin = V::low_halves(V::shift_right(line<V>(block, 0), 16));
  return V::multiply(six_bits_k<V>(block, 2, g), dmin);
}

template <typename V>
struct ReadQ4_K : BlockReader<32, 8, 15, 0, true> {
  LOLA_INLINE void quants(int g, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 8; ++i) q[i] = field<V>(line<V>(block, 4 + g / 2 * 8 + i), g % 2 * 4, 0x0F);
  }
  LOLA_INLINE typename V::Floats scale(int g) const { return scale_k<V>(block, g); }
  LOLA_INLINE typename V::Floats min(int g) const { return min_k<V>(block, g); }
};

template <typename V>
struct ReadQ5_K : BlockReader<32, 8, 31, 0, true> {
  LOLA_INLINE void quants(int g, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 8; ++i) {
      const auto low = field<V>(line<V>(block, 12 + g / 2 * 8 + i), g % 2 * 4, 0x0F);
      q[i] = V::bit_or(low, V::shift_left(field<V>(line<V>(block, 4 + i), g, 1), 4));
    }
  }
  LOLA_INLINE typename V::Floats scale(int g) const { return scale_k<V>(block, g); }
  LOLA_INLINE typename V::Floats min(int g) const { return min_k<V>(block, g); }
};

template <typename V>
struct ReadQ6_K : BlockReader<16, 16, 63, 32> {
  LOLA_INLINE void quants(int g, typename V::Words* q) const {
    const int run = g / 2;  // of 32 weights
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int word = g % 2 * 4 + i;
      const auto low = line<V>(block, run / 4 * 16 + run % 2 * 8 + word);
      const auto high = line<V>(block, 32 + run / 4 * 8 + word);
      q[i] = V::bit_or(field<V>(low, run % 4 / 2 * 4, 0x0F),
                       V::shift_left(field<V>(high, run % 4 * 2, 3), 4));
    }
  }
  LOLA_INLINE typename V::Floats scale(int g) const {
    const auto top = V::shift_left(line<V>(block, 48 + g / 4), 24 - g % 4 * 8);
    return V::multiply(V::to_float(V::shift_right_signed(top, 24)), V::halves(block.odd));
  }
};

template <typename V>
struct ReadQ2_K : BlockReader<16, 16, 3, 0, true> {
  LOLA_INLINE void quants(int g, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      q[i] = field<V>(line<V>(block, 4 + g / 8 * 8 + g % 2 * 4 + i), g / 2 % 4 * 2, 3);
    }
  }
  LOLA_INLINE typename V::Floats scale(int g) const {
    return V::multiply(small_number<V>(line<V>(block, g / 4), g % 4 * 8, 0x0F),
                       V::low_halves(line<V>(block, 20)));
  }
  LOLA_INLINE typename V::Floats min(int g) const {
    return V::multiply(small_number<V>(line<V>(block, g / 4), g % 4 * 8 + 4, 0x0F),
                       V::low_halves(V::shift_right(line<V>(block, 20), 16)));
  }
};

template <typename V>
struct ReadQ3_K : BlockReader<16, 16, 7, 4> {
  LOLA_INLINE void quants(int g, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int word = g % 2 * 4 + i;
      const auto low = field<V>(line<V>(block, 8 + g / 8 * 8 + word), g / 2 % 4 * 2, 3);
      q[i] = V::bit_or(low, V::shift_left(field<V>(line<V>(block, word), g / 2, 1), 2));
    }
  }
  LOLA_INLINE typename V::Floats scale(int g) const {
    const auto low = small_number<V>(line<V>(block, 24 + g % 8 / 4), g % 4 * 8 + g / 8 * 4, 0x0F);
    const auto high = small_number<V>(line<V>(block, 26), g % 4 * 8 + g / 4 * 2, 3);
    const auto six = V::multiply_add(high, V::splat(16.0f), V::subtract(low, V::splat(32.0f)));
    return V::multiply(six, V::halves(block.odd));
  }
};

// Some columns of a panel in the integer form of quant_table.h: how formats without a reader of
// their own are read.
struct UnpackedPanel {
  static constexpr int kColumns = 256;
  alignas(64) int8_t words[kColumns / 4][kPanelRows][4];
  alignas(64) float scale[16][kPanelRows];
  alignas(64) float min[16][kPanelRows];
};

template <typename V, int kSize, bool kMin>
struct ReadUnpacked : BlockReader<kSize, UnpackedPanel::kColumns / kSize, 0, 0, kMin> {
  const UnpackedPanel* panel;
  int row;  // the first of those that are read

  LOLA_INLINE void quants(int g, typename V::Words* q) const {
    LOLA_UNROLL
    for (int i = 0; i < kSize / 4; ++i) q[i] = V::load(panel->words[g * (kSize / 4) + i][row]);
  }
  LOLA_INLINE typename V::Floats scale(int g) const {
    return V::load_floats(panel->scale[g] + row);
  }
  LOLA_INLINE typename V::Floats min(int g) const { return V::load_floats(panel->min[g] + row); }
};

}  // namespace
}  // namespace lola

// How AVX2 reads the common formats: the integer form of quant/, with q made unsigned where it is
// narrow, because the byte multiply takes one unsigned operand: w = scale * (q + k) - (min + k *
// scale). Also used by AVX-512. Only matmul_avx2.cpp and matmul_avx512.cpp include this.
#pragma once

#include <immintrin.h>

#include "kernels/matmul_tile.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"

namespace lola {
namespace {

template <typename Pointer>
inline __m256i load256(const Pointer* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

template <typename Pointer>
inline __m128i load128(const Pointer* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

inline void store256(int8_t* p, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }

inline float half_at(const uint8_t* bytes) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(bytes))));
}

// The float16 at the head of eight consecutive blocks.
template <typename Block>
LOLA_INLINE __m256 eight_halves(const Block* blocks, const uint8_t (Block::*member)[2]) {
  alignas(16) uint16_t halves[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&halves[i], blocks[i].*member, 2);
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
}

// 16 bytes of nibbles -> 32 bytes: the low ones, then the high ones.
LOLA_INLINE __m256i nibbles(const uint8_t* bytes) {
  const __m128i packed = load128(bytes);
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(0x0F));
}

// 32 bits -> 32 bytes of 0 or 0x10.
inline __m256i fifth_bits(const uint8_t* bytes) {
  uint32_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32(static_cast<int>(bits)),
      _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0));
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
  return _mm256_and_si256(set, _mm256_set1_epi8(0x10));
}

inline __m256i iq4_levels(const uint8_t* bytes) {
  const __m256i levels = _mm256_broadcastsi128_si256(load128(kIQ4Levels));
  return _mm256_shuffle_epi8(levels, nibbles(bytes));
}

// The six-bit s and m of eight groups (see quant/q4_k.h), times d and dmin.
LOLA_INLINE void scales_k(const uint8_t* packed, const uint8_t* d, const uint8_t* dmin,
                          Chunk& chunk) {
  uint32_t rows[3];
  std::memcpy(rows, packed, sizeof(rows));
  const auto widen = [](uint32_t low, uint32_t high, float factor) {
    const __m128i bytes =
        _mm_insert_epi32(_mm_cvtsi32_si128(static_cast<int>(low)), static_cast<int>(high), 1);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(factor));
  };
  constexpr uint32_t kLow6 = 0x3F3F3F3F, kLow4 = 0x0F0F0F0F, kTop2 = 0x30303030;
  const __m256 scale =
      widen(rows[0] & kLow6, (rows[2] & kLow4) | (rows[0] >> 2 & kTop2), half_at(d));
  const __m256 min =
      widen(rows[1] & kLow6, (rows[2] >> 4 & kLow4) | (rows[1] >> 2 & kTop2), half_at(dmin));
  _mm256_store_ps(chunk.scale, scale);
  _mm256_store_ps(chunk.min, min);
}

inline void store_offset_scales(__m256 scale, float offset, Chunk& chunk) {
  _mm256_store_ps(chunk.scale, scale);
  _mm256_store_ps(chunk.min, _mm256_mul_ps(scale, _mm256_set1_ps(offset)));
}

// A reader fills a Chunk; kMaxQ is the largest q where all are >= 0, else 0.
template <int kGroupSize, bool kMin, int kMax>
struct SimdReader {
  static constexpr int kGroup = kGroupSize;
  static constexpr bool kHasMin = kMin;
  static constexpr int kMaxQ = kMax;
};

struct ReadQ4_0 : SimdReader<32, true, 15> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* blocks = reinterpret_cast<const BlockQ4_0*>(bytes);
    for (int i = 0; i < 8; ++i) store256(chunk.q + i * 32, nibbles(blocks[i].qs));
    store_offset_scales(eight_halves(blocks, &BlockQ4_0::d), 8.0f, chunk);
  }
};

struct ReadQ4_1 : SimdReader<32, true, 15> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* blocks = reinterpret_cast<const BlockQ4_1*>(bytes);
    for (int i = 0; i < 8; ++i) store256(chunk.q + i * 32, nibbles(blocks[i].qs));
    _mm256_store_ps(chunk.scale, eight_halves(blocks, &BlockQ4_1::d));
    const __m256 sign = _mm256_set1_ps(-0.0f);
    _mm256_store_ps(chunk.min, _mm256_xor_ps(eight_halves(blocks, &BlockQ4_1::m), sign));
  }
};

struct ReadQ5_0 : SimdReader<32, true, 31> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* blocks = reinterpret_cast<const BlockQ5_0*>(bytes);
    for (int i = 0; i < 8; ++i) {
      const __m256i q = _mm256_or_si256(nibbles(blocks[i].qs), fifth_bits(blocks[i].qh));
      store256(chunk.q + i * 32, q);
    }
    store_offset_scales(eight_halves(blocks, &BlockQ5_0::d), 16.0f, chunk);
  }
};

struct ReadQ8_0 : SimdReader<32, false, 0> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* blocks = reinterpret_cast<const BlockQ8_0*>(bytes);
    for (int i = 0; i < 8; ++i) store256(chunk.q + i * 32, load256(blocks[i].qs));
    _mm256_store_ps(chunk.scale, eight_halves(blocks, &BlockQ8_0::d));
  }
};

struct ReadQ4_K : SimdReader<32, true, 15> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* block = reinterpret_cast<const BlockQ4_K*>(bytes);
    const __m256i low = _mm256_set1_epi8(0x0F);
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i packed = load256(block->qs + pair * 32);
      store256(chunk.q + pair * 64, _mm256_and_si256(packed, low));
      store256(chunk.q + pair * 64 + 32, _mm256_and_si256(_mm256_srli_epi16(packed, 4), low));
    }
    scales_k(block->scales, block->d, block->dmin, chunk);
  }
};

struct ReadQ5_K : SimdReader<32, true, 31> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* block = reinterpret_cast<const BlockQ5_K*>(bytes);
    const __m256i low = _mm256_set1_epi8(0x0F);
    const __m256i fifth = _mm256_set1_epi8(0x10);
    __m256i high = load256(block->qh);
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i packed = load256(block->qs + pair * 32);
      const __m256i high0 = _mm256_and_si256(_mm256_slli_epi16(high, 4), fifth);
      const __m256i high1 = _mm256_and_si256(_mm256_slli_epi16(high, 3), fifth);
      high = _mm256_srli_epi16(high, 2);
      store256(chunk.q + pair * 64, _mm256_or_si256(_mm256_and_si256(packed, low), high0));
      store256(chunk.q + pair * 64 + 32,
               _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(packed, 4), low), high1));
    }
    scales_k(block->scales, block->d, block->dmin, chunk);
  }
};

struct ReadQ6_K : SimdReader<16, true, 63> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* block = reinterpret_cast<const BlockQ6_K*>(bytes);
    const __m256i low = _mm256_set1_epi8(0x0F);
    const __m256i top = _mm256_set1_epi8(0x30);
    for (int half = 0; half < 2; ++half) {
      const __m256i low0 = load256(block->ql + half * 64);
      const __m256i low1 = load256(block->ql + half * 64 + 32);
      const __m256i high = load256(block->qh + half * 32);
      const auto join = [&](__m256i nibble, __m256i bits) {
        return _mm256_or_si256(_mm256_and_si256(nibble, low), _mm256_and_si256(bits, top));
      };
      int8_t* q = chunk.q + half * 128;
      store256(q, join(low0, _mm256_slli_epi16(high, 4)));
      store256(q + 32, join(low1, _mm256_slli_epi16(high, 2)));
      store256(q + 64, join(_mm256_srli_epi16(low0, 4), high));
      store256(q + 96, join(_mm256_srli_epi16(low1, 4), _mm256_srli_epi16(high, 2)));
    }
    const __m256 d = _mm256_set1_ps(half_at(block->d));
    const __m128i scales = load128(block->scales);
    for (int half = 0; half < 2; ++half) {
      const __m128i eight = half ? _mm_srli_si128(scales, 8) : scales;
      const __m256 scale = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), d);
      _mm256_store_ps(chunk.scale + half * 8, scale);
      _mm256_store_ps(chunk.min + half * 8, _mm256_mul_ps(scale, _mm256_set1_ps(32.0f)));
    }
  }
};

struct ReadIQ4_NL : SimdReader<32, false, 0> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* blocks = reinterpret_cast<const BlockIQ4_NL*>(bytes);
    for (int i = 0; i < 8; ++i) store256(chunk.q + i * 32, iq4_levels(blocks[i].qs));
    _mm256_store_ps(chunk.scale, eight_halves(blocks, &BlockIQ4_NL::d));
  }
};

struct ReadIQ4_XS : SimdReader<32, false, 0> {
  static LOLA_INLINE void load(const uint8_t* bytes, Chunk& chunk) {
    const auto* block = reinterpret_cast<const BlockIQ4_XS*>(bytes);
    for (int i = 0; i < 8; ++i) store256(chunk.q + i * 32, iq4_levels(block->qs + i * 16));
    const __m256i low_shift = _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i high_shift = _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0);
    const __m256i low = _mm256_srlv_epi32(
        _mm256_set1_epi32(static_cast<int>(load_u32(block->scales_l))), low_shift);
    const __m256i high =
        _mm256_srlv_epi32(_mm256_set1_epi32(load_u16(block->scales_h)), high_shift);
    const __m256i six =
        _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(0x0F)),
                        _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4));
    const __m256i scale = _mm256_sub_epi32(six, _mm256_set1_epi32(32));
    _mm256_store_ps(chunk.scale,
                    _mm256_mul_ps(_mm256_cvtepi32_ps(scale), _mm256_set1_ps(half_at(block->d))));
  }
};

// Calls body with the reader of the format.
template <typename Body>
void with_simd_reader(const QuantFormat& format, const Body& body) {
  switch (format.type) {
    case QuantType::kQ4_0:
      return body(ReadQ4_0{});
    case QuantType::kQ4_1:
      return body(ReadQ4_1{});
    case QuantType::kQ5_0:
      return body(ReadQ5_0{});
    case QuantType::kQ8_0:
      return body(ReadQ8_0{});
    case QuantType::kQ4_K:
      return body(ReadQ4_K{});
    case QuantType::kQ5_K:
      return body(ReadQ5_K{});
    case QuantType::kQ6_K:
      return body(ReadQ6_K{});
    case QuantType::kIQ4_NL:
      return body(ReadIQ4_NL{});
    case QuantType::kIQ4_XS:
      return body(ReadIQ4_XS{});
    default:
      return with_table_reader(format, body);
  }
}

}  // namespace
}  // namespace lola

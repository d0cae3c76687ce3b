// The steps of matmul_tile.h that AVX2 and AVX-512 do alike: rounding the activations, and the
// transpositions into panels. Only matmul_avx2.cpp and matmul_avx512.cpp include this.
#pragma once

#include <cmath>

#include "kernels/matmul_read_avx2.h"

namespace lola {
namespace {

inline __m256 load8(const uint8_t* values, F32) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(values));
}
inline __m256 load8(const uint8_t* values, F16) { return _mm256_cvtph_ps(load128(values)); }
inline __m256 load8(const uint8_t* values, BF16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(values)), 16));
}

template <typename Pointer>
inline __m256i broadcast4(const Pointer* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof(four));
  return _mm256_set1_epi32(four);
}

inline float sum8(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline int32_t sum4(__m128i v) {
  const __m128i two = _mm_add_epi32(v, _mm_unpackhi_epi64(v, v));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

inline int32_t max8(__m256i v) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// out[i * stride .. + 8] = element i of the eight rows; load(row) gives eight 32-bit elements.
template <typename Load>
inline void transpose8(const Load& load, float* out, int64_t stride) {
  __m256 rows[8];
  __m256 pairs[8];
  LOLA_UNROLL
  for (int i = 0; i < 8; ++i) rows[i] = load(i);
  LOLA_UNROLL
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  LOLA_UNROLL
  for (int i = 0; i < 8; i += 4) {
    rows[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    rows[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    rows[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    rows[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  LOLA_UNROLL
  for (int i = 0; i < 4; ++i) {
    _mm256_store_ps(out + i * stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20));
    _mm256_store_ps(out + (i + 4) * stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  }
}

struct Avx2Steps {
  // As PlainOps::round_group, and with the sums of its two halves.
  static void round_group(const float* x, int group, ActivationBlock& block) {
    __m256 values[4];
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      values[i] = _mm256_loadu_ps(x + i * 8);
      const __m256i size =
          _mm256_and_si256(_mm256_castps_si256(values[i]), _mm256_set1_epi32(0x7FFFFFFF));
      largest = _mm256_max_epi32(largest, size);
    }
    const int32_t bits = max8(largest);
    const float limit = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
    const bool finite = bits < 0x7F800000;
    const bool zero = limit < 0x1p-100f;
    const float scale = !finite ? NAN : zero ? 0.0f : limit / 127.0f;
    __m256i q[4] = {};
    if (finite && !zero) {
      const __m256 inverse = _mm256_set1_ps(127.0f / limit);
      for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], inverse));
    }
    // The packs work on 128-bit halves; the permutation puts the groups of four in order.
    const __m256i packed = _mm256_permutevar8x32_epi32(
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])),
        _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
    store256(block.q + group * 32, packed);
    const __m256i low = _mm256_add_epi32(q[0], q[1]);
    const __m256i high = _mm256_add_epi32(q[2], q[3]);
    const int32_t sum0 =
        sum4(_mm_add_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
    const int32_t sum1 =
        sum4(_mm_add_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
    block.scale[group] = scale;
    block.sum16[group * 2] = scale * static_cast<float>(sum0);
    block.sum16[group * 2 + 1] = scale * static_cast<float>(sum1);
    block.sum32[group] = scale * static_cast<float>(sum0 + sum1);
    block.offset16[group * 2] = -128 * sum0;
    block.offset16[group * 2 + 1] = -128 * sum1;
    block.offset32[group] = -128 * (sum0 + sum1);
  }

  static void round_activations(const float* x, int64_t cols, ActivationBlock* blocks,
                                int64_t block_stride) {
    for (int64_t col = 0; col < cols; col += kChunk, blocks += block_stride) {
      const int64_t groups = smaller(8, (cols - col) / 32);
      if (groups < 8) std::memset(blocks, 0, sizeof(*blocks));
      for (int64_t group = 0; group < groups; ++group) {
        round_group(x + col + group * 32, static_cast<int>(group), *blocks);
      }
    }
  }

  template <typename Body>
  static void with_reader(const QuantFormat& format, const Body& body) {
    with_simd_reader(format, body);
  }

  // scales = weight scale * activation scale of each group; the products of the mins are added up.
  template <typename Reader>
  static LOLA_INLINE void multiply_scales(const Chunk& chunk, const ActivationBlock& a,
                                          float* scales, __m256& mins) {
    constexpr bool kHalves = Reader::kGroup == 16;
    const __m256 a_scale = _mm256_load_ps(a.scale);
    for (int half = 0; half < (kHalves ? 2 : 1); ++half) {
      __m256 twice = a_scale;
      if (kHalves) {
        const __m256i index = half ? _mm256_set_epi32(7, 7, 6, 6, 5, 5, 4, 4)
                                   : _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
        twice = _mm256_permutevar8x32_ps(a_scale, index);
      }
      const __m256 scale = _mm256_mul_ps(_mm256_load_ps(chunk.scale + half * 8), twice);
      _mm256_store_ps(scales + half * 8, scale);
      if (!Reader::kHasMin) continue;
      const float* a_sum = kHalves ? a.sum16 + half * 8 : a.sum32;
      mins = _mm256_fmadd_ps(_mm256_load_ps(chunk.min + half * 8), _mm256_load_ps(a_sum), mins);
    }
  }

  // scale and min of eight rows -> [groups, lanes], the eight at the first lanes
  template <typename Reader>
  static void transpose_scales(const Chunk* rows, float* scale, float* min, int lanes) {
    for (int group = 0; group < kChunk / Reader::kGroup; group += 8) {
      const auto scales = [&](int row) { return _mm256_load_ps(rows[row].scale + group); };
      transpose8(scales, scale + group * lanes, lanes);
      if (!Reader::kHasMin) continue;
      const auto mins = [&](int row) { return _mm256_load_ps(rows[row].min + group); };
      transpose8(mins, min + group * lanes, lanes);
    }
  }

  // Writes whole registers: up to seven values past the end.
  template <typename Value>
  static void to_floats(const uint8_t* values, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
      _mm256_store_ps(out + i, load8(values + i * Value::kBytes, Value{}));
    if (i == count) return;
    uint8_t rest[8 * 4] = {};
    std::memcpy(rest, values + i * Value::kBytes, static_cast<size_t>(count - i) * Value::kBytes);
    _mm256_store_ps(out + i, load8(rest, Value{}));
  }

  // rows [lanes, kChunk] -> out [cols, lanes]; reads and writes whole groups of eight columns
  static void transpose_floats(const float* rows, int lanes, int64_t cols, float* out) {
    for (int first = 0; first < lanes; first += 8) {
      for (int64_t col = 0; col < cols; col += 8) {
        const auto load = [&](int row) {
          return _mm256_load_ps(rows + (first + row) * kChunk + col);
        };
        transpose8(load, out + col * lanes + first, lanes);
      }
    }
  }
};

}  // namespace
}  // namespace lola

// Rounding activations with AVX2, also for AVX-512. Only matmul_avx2.cpp and matmul_avx512.cpp
// include this.
#pragma once

#include <immintrin.h>

#include "kernels/matmul_plain.h"

namespace lola {
namespace {

template <typename Pointer>
inline __m256i load256(const Pointer* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline int32_t sum8(__m256i v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

inline uint32_t max8(__m256i v) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1))));
}

// As round_group.
inline void round_group_avx2(const float* x, ActivationGroup& group) {
  __m256 values[4];
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    values[i] = _mm256_loadu_ps(x + i * 8);
    const __m256i size =
        _mm256_and_si256(_mm256_castps_si256(values[i]), _mm256_set1_epi32(0x7FFFFFFF));
    largest = _mm256_max_epi32(largest, size);
  }
  const uint32_t bits = max8(largest);
  const float limit = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(bits))));
  const float scale = group_scale(bits, limit);
  __m256i q[4] = {};
  if (scale > 0) {
    const __m256 inverse = _mm256_set1_ps(127.0f / limit);
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], inverse));
  }
  // The packs work on 128-bit halves; the permutation puts the groups of four in order.
  const __m256i packed = _mm256_permutevar8x32_epi32(
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])),
      _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
  _mm256_store_si256(reinterpret_cast<__m256i*>(group.q), packed);
  const int32_t halves[2] = {sum8(_mm256_add_epi32(q[0], q[1])),
                             sum8(_mm256_add_epi32(q[2], q[3]))};
  set_sums(scale, halves, group);
}

inline void round_activations_avx2(const float* x, int64_t cols, ActivationGroup* groups,
                                   int64_t stride) {
  for (int64_t col = 0; col < cols; col += kGroup, groups += stride) {
    round_group_avx2(x + col, *groups);
  }
}

}  // namespace
}  // namespace lola

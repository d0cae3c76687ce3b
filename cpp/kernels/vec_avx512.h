// Sixteen floats in an AVX-512 register, for kernels_simd.h. Needs AVX-512 F, BW, DQ and VL.
// Everything is local to the file that includes this, so that no AVX code is shared with generic
// files.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lola {
namespace {

struct Vec {
  static constexpr int kWidth = 16;
  static constexpr int kAccumulators = 24;  // of 32 registers; the others hold operands

  __m512 value;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec all(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* x) { return {_mm512_loadu_ps(x)}; }
  static Vec load(const float* x, int count) { return {_mm512_maskz_loadu_ps(first(count), x)}; }
  void store(float* x) const { _mm512_storeu_ps(x, value); }
  void store(float* x, int count) const { _mm512_mask_storeu_ps(x, first(count), value); }
  // The first `count` values; zero in the place of the others.
  Vec keep(int count) const { return {_mm512_maskz_mov_ps(first(count), value)}; }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.value, b.value)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.value, b.value)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.value, b.value)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.value, b.value)}; }
  // a b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
  // b where either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.value, b.value)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.value, b.value)}; }
  Vec abs() const { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), value)}; }
  Vec square_root() const { return {_mm512_sqrt_ps(value)}; }
  // To nearest even.
  Vec round() const {
    return {_mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // value 2^exponent, for whole exponents.
  Vec times_power_of_two(Vec exponent) const { return {_mm512_scalef_ps(value, exponent.value)}; }
  static Vec if_less(Vec a, Vec b, Vec yes, Vec no) {
    const __mmask16 less = _mm512_cmp_ps_mask(a.value, b.value, _CMP_LT_OQ);
    return {_mm512_mask_blend_ps(less, no.value, yes.value)};
  }

  float sum() const { return _mm512_reduce_add_ps(value); }
  float largest() const { return _mm512_reduce_max_ps(value); }

  // Quads: four neighbouring values, kWidth / 4 to a register.
  // Quad i is x[i stride .. i stride + 3].
  static Vec load_quads(const float* x, int64_t stride) {
    __m512 quads = _mm512_castps128_ps512(_mm_loadu_ps(x));
    quads = _mm512_insertf32x4(quads, _mm_loadu_ps(x + stride), 1);
    quads = _mm512_insertf32x4(quads, _mm_loadu_ps(x + 2 * stride), 2);
    return {_mm512_insertf32x4(quads, _mm_loadu_ps(x + 3 * stride), 3)};
  }
  // Transposes the 4 x 4 matrices that the quads of v[0..3] with the same number form.
  static void transpose_quads(Vec (&v)[4]) {
    const __m512 low01 = _mm512_unpacklo_ps(v[0].value, v[1].value);
    const __m512 high01 = _mm512_unpackhi_ps(v[0].value, v[1].value);
    const __m512 low23 = _mm512_unpacklo_ps(v[2].value, v[3].value);
    const __m512 high23 = _mm512_unpackhi_ps(v[2].value, v[3].value);
    v[0].value = _mm512_shuffle_ps(low01, low23, _MM_SHUFFLE(1, 0, 1, 0));
    v[1].value = _mm512_shuffle_ps(low01, low23, _MM_SHUFFLE(3, 2, 3, 2));
    v[2].value = _mm512_shuffle_ps(high01, high23, _MM_SHUFFLE(1, 0, 1, 0));
    v[3].value = _mm512_shuffle_ps(high01, high23, _MM_SHUFFLE(3, 2, 3, 2));
  }
  // x[0..3] = the sum of the quads.
  void store_quad_sum(float* x) const {
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
    _mm_storeu_ps(x, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }

  // x[0], x[2], ... and x[1], x[3], ...
  static void load_pairs(const float* x, Vec& even, Vec& odd) {
    const __m512i evens =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512 low = _mm512_loadu_ps(x);
    const __m512 high = _mm512_loadu_ps(x + 16);
    even.value = _mm512_permutex2var_ps(low, evens, high);
    odd.value = _mm512_permutex2var_ps(low, odds, high);
  }
  static void store_pairs(float* x, Vec even, Vec odd) {
    const __m512i lows = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i highs =
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    _mm512_storeu_ps(x, _mm512_permutex2var_ps(even.value, lows, odd.value));
    _mm512_storeu_ps(x + 16, _mm512_permutex2var_ps(even.value, highs, odd.value));
  }

  static Vec all_f16(uint16_t half) {
    return {_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(half)))};
  }
  static uint16_t to_f16(float x) {
    const __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
    return static_cast<uint16_t>(_mm_cvtsi128_si32(half));
  }
  // Halves.
  static Vec load(const uint16_t* x) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)))};
  }
  static Vec load(const uint16_t* x, int count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), x))};
  }
  void store_f16(uint16_t* x) const {
    const __m256i halves = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), halves);
  }
  static Vec load_i8(const uint8_t* x) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }
  // To nearest even, for values in [-127, 127].
  void store_i8(uint8_t* x) const {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(x), bytes);
  }

 private:
  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
};

}  // namespace
}  // namespace lola

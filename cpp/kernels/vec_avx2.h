// Eight floats in an AVX register, for kernels_simd.h. Needs AVX2, FMA and F16C.
// Everything is local to the file that includes this, so that no AVX code is shared with generic
// files.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace lola {
namespace {

struct Vec {
  static constexpr int kWidth = 8;
  static constexpr int kAccumulators = 12;  // of 16 registers; the others hold operands

  __m256 value;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* x) { return {_mm256_loadu_ps(x)}; }
  static Vec load(const float* x, int count) { return {_mm256_maskload_ps(x, first(count))}; }
  void store(float* x) const { _mm256_storeu_ps(x, value); }
  void store(float* x, int count) const { _mm256_maskstore_ps(x, first(count), value); }
  // The first `count` values; zero in the place of the others.
  Vec keep(int count) const { return {_mm256_and_ps(value, _mm256_castsi256_ps(first(count)))}; }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.value, b.value)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.value, b.value)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.value, b.value)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.value, b.value)}; }
  // a b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
  // b where either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.value, b.value)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.value, b.value)}; }
  Vec abs() const { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), value)}; }
  Vec square_root() const { return {_mm256_sqrt_ps(value)}; }
  // To nearest even.
  Vec round() const {
    return {_mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // value 2^exponent, for whole exponents and normal results.
  Vec times_power_of_two(Vec exponent) const {
    const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent.value), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), shifted))};
  }
  static Vec if_less(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm256_blendv_ps(no.value, yes.value, _mm256_cmp_ps(a.value, b.value, _CMP_LT_OQ))};
  }

  float sum() const {
    __m128 half = add_halves(value);
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  float largest() const {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  // Quads: four neighbouring values, kWidth / 4 to a register.
  // Quad i is x[i stride .. i stride + 3].
  static Vec load_quads(const float* x, int64_t stride) {
    const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(x));
    return {_mm256_insertf128_ps(low, _mm_loadu_ps(x + stride), 1)};
  }
  // Transposes the 4 x 4 matrices that the quads of v[0..3] with the same number form.
  static void transpose_quads(Vec (&v)[4]) {
    const __m256 low01 = _mm256_unpacklo_ps(v[0].value, v[1].value);
    const __m256 high01 = _mm256_unpackhi_ps(v[0].value, v[1].value);
    const __m256 low23 = _mm256_unpacklo_ps(v[2].value, v[3].value);
    const __m256 high23 = _mm256_unpackhi_ps(v[2].value, v[3].value);
    v[0].value = _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(1, 0, 1, 0));
    v[1].value = _mm256_shuffle_ps(low01, low23, _MM_SHUFFLE(3, 2, 3, 2));
    v[2].value = _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(1, 0, 1, 0));
    v[3].value = _mm256_shuffle_ps(high01, high23, _MM_SHUFFLE(3, 2, 3, 2));
  }
  // x[0..3] = the sum of the quads.
  void store_quad_sum(float* x) const { _mm_storeu_ps(x, add_halves(value)); }

  // x[0], x[2], ... and x[1], x[3], ...
  static void load_pairs(const float* x, Vec& even, Vec& odd) {
    const __m256 low = _mm256_loadu_ps(x);
    const __m256 high = _mm256_loadu_ps(x + 8);
    even.value = order_quarters(_mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0)));
    odd.value = order_quarters(_mm256_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1)));
  }
  static void store_pairs(float* x, Vec even, Vec odd) {
    const __m256 low = _mm256_unpacklo_ps(even.value, odd.value);
    const __m256 high = _mm256_unpackhi_ps(even.value, odd.value);
    _mm256_storeu_ps(x, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(x + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }

  static Vec all_f16(uint16_t half) {
    return {_mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(half)))};
  }
  static uint16_t to_f16(float x) {
    const __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
    return static_cast<uint16_t>(_mm_cvtsi128_si32(half));
  }
  // Halves.
  static Vec load(const uint16_t* x) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)))};
  }
  static Vec load(const uint16_t* x, int count) {
    uint16_t halves[kWidth] = {};
    std::memcpy(halves, x, static_cast<size_t>(count) * sizeof *x);
    return load(halves);
  }
  void store_f16(uint16_t* x) const {
    const __m128i halves = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(x), halves);
  }
  static Vec load_i8(const uint8_t* x) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
  }
  // To nearest even, for values in [-127, 127].
  void store_i8(uint8_t* x) const {
    const __m256i levels = _mm256_cvtps_epi32(value);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(levels), _mm256_extracti128_si256(levels, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(x), _mm_packs_epi16(words, words));
  }

 private:
  static __m256i first(int count) {
    alignas(32) static constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - count));
  }
  static __m128 add_halves(__m256 x) {
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  }
  static __m256 order_quarters(__m256 x) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), _MM_SHUFFLE(3, 1, 2, 0)));
  }
};

}  // namespace
}  // namespace lola

// Four floats in a NEON register (AArch64), for kernels_simd.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace lola {
namespace {

struct Vec {
  static constexpr int kWidth = 4;
  static constexpr int kAccumulators = 24;  // of 32 registers; the others hold operands

  float32x4_t value;

  static Vec zero() { return {vdupq_n_f32(0.0f)}; }
  static Vec all(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* x) { return {vld1q_f32(x)}; }
  static Vec load(const float* x, int count) {
    float values[kWidth] = {};
    for (int i = 0; i < count; ++i) values[i] = x[i];
    return load(values);
  }
  void store(float* x) const { vst1q_f32(x, value); }
  void store(float* x, int count) const {
    float values[kWidth];
    store(values);
    for (int i = 0; i < count; ++i) x[i] = values[i];
  }
  // The first `count` values; zero in the place of the others.
  Vec keep(int count) const {
    float values[kWidth];
    store(values);
    return load(values, count);
  }

  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.value, b.value)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.value, b.value)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.value, b.value)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.value, b.value)}; }
  // a b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.value, a.value, b.value)}; }
  // NaN where either is NaN.
  static Vec max(Vec a, Vec b) { return {vmaxq_f32(a.value, b.value)}; }
  static Vec min(Vec a, Vec b) { return {vminq_f32(a.value, b.value)}; }
  Vec abs() const { return {vabsq_f32(value)}; }
  Vec square_root() const { return {vsqrtq_f32(value)}; }
  // To nearest even.
  Vec round() const { return {vrndnq_f32(value)}; }
  // value 2^exponent, for whole exponents and normal results.
  Vec times_power_of_two(Vec exponent) const {
    const int32x4_t shifted = vshlq_n_s32(vcvtnq_s32_f32(exponent.value), 23);
    return {vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(value), shifted))};
  }
  static Vec if_less(Vec a, Vec b, Vec yes, Vec no) {
    return {vbslq_f32(vcltq_f32(a.value, b.value), yes.value, no.value)};
  }

  float sum() const { return vaddvq_f32(value); }
  float largest() const { return vmaxvq_f32(value); }

  // Quads: four neighbouring values, kWidth / 4 to a register. Here the register is the one quad.
  static Vec load_quads(const float* x, int64_t) { return load(x); }
  // Transposes the 4 x 4 matrix of v[0..3].
  static void transpose_quads(Vec (&v)[4]) {
    const float64x2_t low01 = vreinterpretq_f64_f32(vzip1q_f32(v[0].value, v[1].value));
    const float64x2_t high01 = vreinterpretq_f64_f32(vzip2q_f32(v[0].value, v[1].value));
    const float64x2_t low23 = vreinterpretq_f64_f32(vzip1q_f32(v[2].value, v[3].value));
    const float64x2_t high23 = vreinterpretq_f64_f32(vzip2q_f32(v[2].value, v[3].value));
    v[0].value = vreinterpretq_f32_f64(vzip1q_f64(low01, low23));
    v[1].value = vreinterpretq_f32_f64(vzip2q_f64(low01, low23));
    v[2].value = vreinterpretq_f32_f64(vzip1q_f64(high01, high23));
    v[3].value = vreinterpretq_f32_f64(vzip2q_f64(high01, high23));
  }
  // x[0..3] = the sum of the quads.
  void store_quad_sum(float* x) const { store(x); }

  // x[0], x[2], ... and x[1], x[3], ...
  static void load_pairs(const float* x, Vec& even, Vec& odd) {
    const float32x4x2_t pairs = vld2q_f32(x);
    even.value = pairs.val[0];
    odd.value = pairs.val[1];
  }
  static void store_pairs(float* x, Vec even, Vec odd) {
    vst2q_f32(x, float32x4x2_t{{even.value, odd.value}});
  }

  static Vec all_f16(uint16_t half) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)))};
  }
  static uint16_t to_f16(float x) {
    return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
  }
  // Halves.
  static Vec load(const uint16_t* x) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)))}; }
  static Vec load(const uint16_t* x, int count) {
    uint16_t halves[kWidth] = {};
    std::memcpy(halves, x, static_cast<size_t>(count) * sizeof *x);
    return load(halves);
  }
  void store_f16(uint16_t* x) const { vst1_u16(x, vreinterpret_u16_f16(vcvt_f16_f32(value))); }
  static Vec load_i8(const uint8_t* x) {
    uint32_t four;
    std::memcpy(&four, x, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_u32(vdup_n_u32(four));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))};
  }
  // To nearest even, for values in [-127, 127].
  void store_i8(uint8_t* x) const {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(value));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    std::memcpy(x, &four, sizeof four);
  }
};

}  // namespace
}  // namespace lola

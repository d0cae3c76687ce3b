// Four floats at once, with what every processor has: SSE2, NEON, or plain code. The operations are
// exact to the bit on all of them. For code that is not worth a kernel for each instruction set.
#pragma once

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lola {

#if defined(__SSE2__) || defined(_M_X64)

struct Float4 {
  __m128 v;
};
static inline Float4 load4(const float* from) { return {_mm_loadu_ps(from)}; }
static inline Float4 all4(float value) { return {_mm_set1_ps(value)}; }
static inline void store4(Float4 a, float* to) { _mm_storeu_ps(to, a.v); }
static inline Float4 operator+(Float4 a, Float4 b) { return {_mm_add_ps(a.v, b.v)}; }
static inline Float4 operator-(Float4 a, Float4 b) { return {_mm_sub_ps(a.v, b.v)}; }
static inline Float4 operator*(Float4 a, Float4 b) { return {_mm_mul_ps(a.v, b.v)}; }
static inline Float4 min4(Float4 a, Float4 b) { return {_mm_min_ps(a.v, b.v)}; }
static inline Float4 max4(Float4 a, Float4 b) { return {_mm_max_ps(a.v, b.v)}; }

#elif defined(__aarch64__)

struct Float4 {
  float32x4_t v;
};
static inline Float4 load4(const float* from) { return {vld1q_f32(from)}; }
static inline Float4 all4(float value) { return {vdupq_n_f32(value)}; }
static inline void store4(Float4 a, float* to) { vst1q_f32(to, a.v); }
static inline Float4 operator+(Float4 a, Float4 b) { return {vaddq_f32(a.v, b.v)}; }
static inline Float4 operator-(Float4 a, Float4 b) { return {vsubq_f32(a.v, b.v)}; }
static inline Float4 operator*(Float4 a, Float4 b) { return {vmulq_f32(a.v, b.v)}; }
static inline Float4 min4(Float4 a, Float4 b) { return {vminq_f32(a.v, b.v)}; }
static inline Float4 max4(Float4 a, Float4 b) { return {vmaxq_f32(a.v, b.v)}; }

#else

struct Float4 {
  float v[4];
};
template <typename Operation>
static inline Float4 each4(Float4 a, Float4 b, const Operation& operation) {
  for (int i = 0; i < 4; ++i) a.v[i] = operation(a.v[i], b.v[i]);
  return a;
}
static inline Float4 load4(const float* from) { return {{from[0], from[1], from[2], from[3]}}; }
static inline Float4 all4(float value) { return {{value, value, value, value}}; }
static inline void store4(Float4 a, float* to) {
  for (int i = 0; i < 4; ++i) to[i] = a.v[i];
}
static inline Float4 operator+(Float4 a, Float4 b) {
  return each4(a, b, [](float x, float y) { return x + y; });
}
static inline Float4 operator-(Float4 a, Float4 b) {
  return each4(a, b, [](float x, float y) { return x - y; });
}
static inline Float4 operator*(Float4 a, Float4 b) {
  return each4(a, b, [](float x, float y) { return x * y; });
}
static inline Float4 min4(Float4 a, Float4 b) {
  return each4(a, b, [](float x, float y) { return x < y ? x : y; });
}
static inline Float4 max4(Float4 a, Float4 b) {
  return each4(a, b, [](float x, float y) { return x > y ? x : y; });
}

#endif

static inline float sum4(Float4 a) {
  float values[4];
  store4(a, values);
  return (values[0] + values[2]) + (values[1] + values[3]);
}

}  // namespace lola

// F32, F16 and BF16: the formats without blocks.
#pragma once

#include <cstdint>
#include <cstring>

#include "quant/block.h"

namespace lola {

static inline void decode_f32(const uint8_t* values, int64_t count, float* out) {
  std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
}

static inline void decode_f16(const uint8_t* values, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = load_f16(values + 2 * i);
}

static inline void decode_bf16(const uint8_t* values, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(load_u16(values + 2 * i));
}

// The importance of a weight changes nothing where each is rounded for itself.
static inline void encode_f32(const float* weights, const float*, int64_t count, uint8_t* out) {
  std::memcpy(out, weights, static_cast<size_t>(count) * sizeof(float));
}

static inline void encode_f16(const float* weights, const float*, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) store_u16(f32_to_f16(weights[i]), out + 2 * i);
}

static inline void encode_bf16(const float* weights, const float*, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) store_u16(f32_to_bf16(weights[i]), out + 2 * i);
}

}  // namespace lola

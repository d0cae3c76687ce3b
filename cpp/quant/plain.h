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

}  // namespace lola

// Encoding of the formats with one scale, and perhaps one min, for a block: Q4_0, Q4_1, Q5_0, Q5_1
// and Q8_0.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "quant/encode/fit.h"

namespace lola {

// The importance of each weight, scaled to a mean of 1. A column that the importance matrix never
// saw keeps a little, so that its weights stay near what they were. importance may be null: all
// weights count alike. w [count]
static inline void importance_weights(const float* importance, int count, float* w) {
  constexpr float kUnseen = 1e-4f;
  double sum = 0.0;
  for (int i = 0; importance != nullptr && i < count; ++i) sum += importance[i];
  const double scale = sum > 0.0 ? count / sum : 0.0;
  for (int i = 0; i < count; ++i) {
    w[i] = scale > 0.0 ? static_cast<float>(importance[i] * scale) + kUnseen : 1.0f;
  }
}

// A least-squares min may lie a little beyond the weights, and so beyond float16.
static inline uint16_t finite_f16(float value) {
  constexpr float kMaxF16 = 65504.0f;
  return f32_to_f16(std::min(std::max(value, -kMaxF16), kMaxF16));
}

template <typename Block>
static void encode_block(const float* x, const float* w, Block* block) {
  const Fit fit = fit_scale<Block::kWeights, Block::kMinQ, Block::kMaxQ>(x, w);
  const uint16_t d = f32_to_f16(fit.at.scale);
  int8_t q[Block::kWeights];
  write_codes<Block::kWeights, Block::kMinQ, Block::kMaxQ>(x, {f16_to_f32(d), 0.0f}, q);
  pack(q, d, block);
}

template <typename Block>
static void encode_block_with_min(const float* x, const float* w, Block* block) {
  const Fit fit = fit_scale_min<Block::kWeights, Block::kMaxQ, false>(x, w);
  const uint16_t d = f32_to_f16(fit.at.scale);
  const uint16_t m = finite_f16(-fit.at.min);
  int8_t q[Block::kWeights];
  write_codes<Block::kWeights, 0, Block::kMaxQ>(x, {f16_to_f32(d), -f16_to_f32(m)}, q);
  pack(q, d, m, block);
}

// weights and importance [count * kWeights] -> blocks [count]; importance may be null.
template <typename Block, void (*kEncode)(const float*, const float*, Block*)>
static void encode_each(const float* weights, const float* importance, int64_t count,
                        uint8_t* blocks) {
  float w[Block::kWeights];
  importance_weights(nullptr, Block::kWeights, w);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = i * Block::kWeights;
    if (importance != nullptr) importance_weights(importance + first, Block::kWeights, w);
    Block block;
    kEncode(weights + first, w, &block);
    std::memcpy(blocks + i * static_cast<int64_t>(sizeof(Block)), &block, sizeof(Block));
  }
}

}  // namespace lola

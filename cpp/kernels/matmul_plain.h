// The innermost steps of matmul_tile.h in plain C++: the reference of the others.
#pragma once

#include <cmath>
#include <type_traits>

#include "kernels/matmul_tile.h"
#include "quant/plain.h"

namespace lola {
namespace {

struct PlainOps {
  static constexpr int kPanelRows = 16;

  struct RowSum {
    float value = 0;
  };

  struct Panel {
    int8_t q[kChunk][kPanelRows];
    float scale[16][kPanelRows];
    float min[16][kPanelRows];
    float values[kChunk][kPanelRows];  // of float weights
  };

  static uint32_t magnitude(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits & 0x7FFFFFFFu;
  }

  // A group below 2^-100 is rounded to zero, since 127 / largest could overflow.
  static void round_group(const float* x, int64_t count, int8_t* q, float* scale) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t size = magnitude(x[i]);
      if (size > largest) largest = size;
    }
    std::memset(q, 0, 32);
    float limit;
    std::memcpy(&limit, &largest, sizeof(limit));
    *scale = limit < 0x1p-100f ? 0.0f : limit / 127.0f;
    if (largest >= 0x7F800000u) *scale = NAN;
    if (largest >= 0x7F800000u || limit < 0x1p-100f) return;
    const float inverse = 127.0f / limit;
    for (int64_t i = 0; i < count; ++i) {
      const float shifted = x[i] * inverse + 0x1.8p23f;  // the FPU rounds to nearest even
      q[i] = static_cast<int8_t>(shifted - 0x1.8p23f);
    }
  }

  static void round_activations(const float* x, int64_t cols, ActivationBlock* blocks,
                                int64_t block_stride) {
    for (int64_t col = 0; col < cols; col += kChunk, blocks += block_stride) {
      for (int group = 0; group < 8; ++group) {
        const int64_t first = col + group * 32;
        const int64_t count = first < cols ? smaller(32, cols - first) : 0;
        round_group(x + (count ? first : 0), count, blocks->q + group * 32, &blocks->scale[group]);
        int32_t sums[2] = {0, 0};
        for (int i = 0; i < 32; ++i) sums[i / 16] += blocks->q[group * 32 + i];
        for (int half = 0; half < 2; ++half) {
          blocks->sum16[group * 2 + half] = blocks->scale[group] * static_cast<float>(sums[half]);
          blocks->offset16[group * 2 + half] = -128 * sums[half];
        }
        blocks->sum32[group] = blocks->scale[group] * static_cast<float>(sums[0] + sums[1]);
        blocks->offset32[group] = -128 * (sums[0] + sums[1]);
      }
    }
  }

  template <typename Body>
  static void with_reader(const QuantFormat& format, const Body& body) {
    with_table_reader(format, body);
  }

  template <typename Reader>
  static void dot(const Chunk& chunk, const ActivationBlock& a, RowSum& sum) {
    for (int group = 0; group < kChunk / Reader::kGroup; ++group) {
      int32_t products = 0;
      for (int i = group * Reader::kGroup; i < (group + 1) * Reader::kGroup; ++i) {
        products += chunk.q[i] * a.q[i];
      }
      const float scale = chunk.scale[group] * a.scale[group * Reader::kGroup / 32];
      sum.value += scale * static_cast<float>(products);
      if (Reader::kHasMin) {
        sum.value -= chunk.min[group] * (Reader::kGroup == 32 ? a.sum32 : a.sum16)[group];
      }
    }
  }

  static float total(const RowSum& sum) { return sum.value; }

  template <typename Reader>
  static void fill_panel(const Chunk* chunks, Panel& panel) {
    for (int row = 0; row < kPanelRows; ++row) {
      for (int i = 0; i < kChunk; ++i) panel.q[i][row] = chunks[row].q[i];
      for (int group = 0; group < kChunk / Reader::kGroup; ++group) {
        panel.scale[group][row] = chunks[row].scale[group];
        if (Reader::kHasMin) panel.min[group][row] = chunks[row].min[group];
      }
    }
  }

  template <typename Reader>
  static void multiply_panel(const Panel& panel, const ActivationBlock* a, int64_t tokens,
                             float* sums) {
    for (int64_t token = 0; token < tokens; ++token, ++a, sums += kPanelRows) {
      for (int group = 0; group < kChunk / Reader::kGroup; ++group) {
        int32_t products[kPanelRows] = {};
        for (int i = group * Reader::kGroup; i < (group + 1) * Reader::kGroup; ++i) {
          for (int row = 0; row < kPanelRows; ++row) products[row] += panel.q[i][row] * a->q[i];
        }
        const float scale = a->scale[group * Reader::kGroup / 32];
        const float sum = (Reader::kGroup == 32 ? a->sum32 : a->sum16)[group];
        for (int row = 0; row < kPanelRows; ++row) {
          sums[row] += panel.scale[group][row] * scale * static_cast<float>(products[row]);
          if (Reader::kHasMin) sums[row] -= panel.min[group][row] * sum;
        }
      }
    }
  }

  template <typename Value>
  static void to_floats(const uint8_t* values, int64_t count, float* out) {
    if constexpr (std::is_same_v<Value, F32>) decode_f32(values, count, out);
    if constexpr (std::is_same_v<Value, F16>) decode_f16(values, count, out);
    if constexpr (std::is_same_v<Value, BF16>) decode_bf16(values, count, out);
  }

  template <typename Value>
  static float float_dot(const uint8_t* values, const float* x, int64_t cols) {
    float weights[kChunk];
    float sums[8] = {};
    for (int64_t col = 0; col < cols; col += kChunk) {
      const int64_t count = smaller(kChunk, cols - col);
      to_floats<Value>(values + col * Value::kBytes, count, weights);
      for (int64_t i = 0; i < count; ++i) sums[i % 8] += weights[i] * x[col + i];
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }

  static void fill_float_panel(const float* rows, int64_t cols, Panel& panel) {
    for (int row = 0; row < kPanelRows; ++row) {
      for (int64_t i = 0; i < cols; ++i) panel.values[i][row] = rows[row * kChunk + i];
    }
  }

  static void multiply_float_panel(const Panel& panel, const float* x, int64_t x_stride,
                                   int64_t cols, int64_t tokens, float* sums) {
    for (int64_t token = 0; token < tokens; ++token, x += x_stride, sums += kPanelRows) {
      for (int64_t i = 0; i < cols; ++i) {
        for (int row = 0; row < kPanelRows; ++row) sums[row] += panel.values[i][row] * x[i];
      }
    }
  }
};

}  // namespace
}  // namespace lola

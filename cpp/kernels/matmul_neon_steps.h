// The steps of matmul_tile.h for AArch64, over how sums of four byte products are made:
//   static int32x4_t Bytes::dot(int32x4_t sum, int8x16_t w, int8x16_t a)
// Rounding and the readers are the plain ones: the compiler makes NEON of them. Only
// matmul_neon.cpp and matmul_dotprod_neon.cpp include this.
#pragma once

#include <arm_neon.h>

#include "kernels/matmul_plain.h"

namespace lola {
namespace {

inline float32x4_t load4(const uint8_t* values, F32) {
  return vreinterpretq_f32_u8(vld1q_u8(values));
}
inline float32x4_t load4(const uint8_t* values, F16) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(values)));
}
inline float32x4_t load4(const uint8_t* values, BF16) {
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(values)), 16));
}

inline int8x16_t broadcast4(const int8_t* bytes) {
  int32_t four;
  std::memcpy(&four, bytes, sizeof(four));
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

template <typename Bytes>
struct NeonOps : PlainOps {
  static constexpr int kPanelRows = 16;
  static constexpr int kVectors = kPanelRows / 4;

  struct RowSum {
    float32x4_t products[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    float32x4_t mins = vdupq_n_f32(0);
  };

  struct Panel {
    alignas(64) int8_t q[kChunk / 4][kPanelRows][4];
    alignas(64) float scale[16][kPanelRows];
    alignas(64) float min[16][kPanelRows];
    alignas(64) float values[kChunk][kPanelRows];  // of float weights
  };

  template <typename Reader>
  static LOLA_INLINE void dot(const Chunk& chunk, const ActivationBlock& a, RowSum& sum) {
    constexpr int kGroup = Reader::kGroup;
    LOLA_UNROLL
    for (int group = 0; group < kChunk / kGroup; ++group) {
      int32x4_t products = vdupq_n_s32(0);
      for (int i = group * kGroup; i < (group + 1) * kGroup; i += 16) {
        products = Bytes::dot(products, vld1q_s8(chunk.q + i), vld1q_s8(a.q + i));
      }
      const float scale = chunk.scale[group] * a.scale[group * kGroup / 32];
      float32x4_t& to = sum.products[group % 4];
      to = vfmaq_n_f32(to, vcvtq_f32_s32(products), scale);
    }
    const float* a_sum = kGroup == 32 ? a.sum32 : a.sum16;
    for (int group = 0; Reader::kHasMin && group < kChunk / kGroup; group += 4) {
      sum.mins = vfmaq_f32(sum.mins, vld1q_f32(chunk.min + group), vld1q_f32(a_sum + group));
    }
  }

  static float total(const RowSum& sum) {
    const float32x4_t low = vaddq_f32(sum.products[0], sum.products[1]);
    const float32x4_t high = vaddq_f32(sum.products[2], sum.products[3]);
    return vaddvq_f32(vsubq_f32(vaddq_f32(low, high), sum.mins));
  }

  template <typename Reader>
  static void fill_panel(const Chunk* chunks, Panel& panel) {
    for (int row = 0; row < kPanelRows; ++row) {
      for (int i = 0; i < kChunk / 4; ++i) std::memcpy(panel.q[i][row], chunks[row].q + i * 4, 4);
      for (int group = 0; group < kChunk / Reader::kGroup; ++group) {
        panel.scale[group][row] = chunks[row].scale[group];
        if (Reader::kHasMin) panel.min[group][row] = chunks[row].min[group];
      }
    }
  }

  template <typename Reader, int kTokens>
  static void multiply_tokens(const Panel& panel, const ActivationBlock* a, float* sums) {
    constexpr int kGroup = Reader::kGroup;
    for (int group = 0; group < kChunk / kGroup; ++group) {
      int32x4_t products[kTokens][kVectors];
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        for (int v = 0; v < kVectors; ++v) products[t][v] = vdupq_n_s32(0);
      }
      LOLA_UNROLL
      for (int i = group * kGroup; i < (group + 1) * kGroup; i += 4) {
        int8x16_t w[kVectors];
        LOLA_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v] = vld1q_s8(panel.q[i / 4][v * 4]);
        LOLA_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          const int8x16_t four = broadcast4(a[t].q + i);
          LOLA_UNROLL
          for (int v = 0; v < kVectors; ++v) {
            products[t][v] = Bytes::dot(products[t][v], w[v], four);
          }
        }
      }
      LOLA_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const float a_scale = a[t].scale[group * kGroup / 32];
        const float a_sum = kGroup == 32 ? a[t].sum32[group % 8] : a[t].sum16[group];
        LOLA_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          float* to = sums + t * kPanelRows + v * 4;
          const float32x4_t value = vmulq_n_f32(vcvtq_f32_s32(products[t][v]), a_scale);
          float32x4_t sum = vfmaq_f32(vld1q_f32(to), value, vld1q_f32(&panel.scale[group][v * 4]));
          if (Reader::kHasMin) {
            sum = vfmsq_n_f32(sum, vld1q_f32(&panel.min[group][v * 4]), a_sum);
          }
          vst1q_f32(to, sum);
        }
      }
    }
  }

  template <typename Reader>
  static void multiply_panel(const Panel& panel, const ActivationBlock* a, int64_t tokens,
                             float* sums) {
    int64_t token = 0;
    for (; token + 4 <= tokens; token += 4) {
      multiply_tokens<Reader, 4>(panel, a + token, sums + token * kPanelRows);
    }
    for (; token < tokens; ++token) {
      multiply_tokens<Reader, 1>(panel, a + token, sums + token * kPanelRows);
    }
  }

  template <typename Value>
  static float float_dot(const uint8_t* values, const float* x, int64_t cols) {
    RowSum sum;
    int64_t col = 0;
    for (; col + 16 <= cols; col += 16) {
      LOLA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float32x4_t w = load4(values + (col + i * 4) * Value::kBytes, Value{});
        sum.products[i] = vfmaq_f32(sum.products[i], w, vld1q_f32(x + col + i * 4));
      }
    }
    for (; col < cols; col += 4) {
      uint8_t w[4 * 4] = {};
      float a[4] = {};
      const auto count = static_cast<size_t>(smaller(4, cols - col));
      std::memcpy(w, values + col * Value::kBytes, count * Value::kBytes);
      std::memcpy(a, x + col, count * sizeof(float));
      sum.products[0] = vfmaq_f32(sum.products[0], load4(w, Value{}), vld1q_f32(a));
    }
    return total(sum);
  }

  static void fill_float_panel(const float* rows, int64_t cols, Panel& panel) {
    for (int row = 0; row < kPanelRows; ++row) {
      for (int64_t i = 0; i < cols; ++i) panel.values[i][row] = rows[row * kChunk + i];
    }
  }

  template <int kTokens>
  static void multiply_float_tokens(const Panel& panel, const float* x, int64_t x_stride,
                                    int64_t cols, float* to) {
    float32x4_t sums[kTokens][kVectors];
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v) sums[t][v] = vld1q_f32(to + t * kPanelRows + v * 4);
    }
    for (int64_t i = 0; i < cols; ++i) {
      LOLA_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const float32x4_t w = vld1q_f32(panel.values[i] + v * 4);
        LOLA_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          sums[t][v] = vfmaq_n_f32(sums[t][v], w, x[t * x_stride + i]);
        }
      }
    }
    LOLA_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v) vst1q_f32(to + t * kPanelRows + v * 4, sums[t][v]);
    }
  }

  static void multiply_float_panel(const Panel& panel, const float* x, int64_t x_stride,
                                   int64_t cols, int64_t tokens, float* sums) {
    int64_t token = 0;
    for (; token + 4 <= tokens; token += 4) {
      multiply_float_tokens<4>(panel, x + token * x_stride, x_stride, cols,
                               sums + token * kPanelRows);
    }
    for (; token < tokens; ++token) {
      multiply_float_tokens<1>(panel, x + token * x_stride, x_stride, cols,
                               sums + token * kPanelRows);
    }
  }
};

}  // namespace

// The kernels for processors with the dot product extension of Armv8.2.
extern const MatmulKernels kMatmulNeonDotprod;

}  // namespace lola

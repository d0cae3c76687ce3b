// What one instruction set does of a matrix product: a tile of rows of one job, by one thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.h"

namespace lola {

inline constexpr int kGroup = 32;          // activations that are rounded together
inline constexpr int kMaxTilePanels = 4;   // panels that share the activations in a nearby cache
inline constexpr int kMaxRunTokens = 128;  // tokens whose sums a thread keeps at a time

// Integer sums start at the bits of this float, and so are, as floats, kMagic + the sum: the
// conversion costs nothing. Sums stay below 2^22.
inline constexpr float kMagic = 0x1.8p23f;
inline constexpr int32_t kMagicBits = 0x4B400000;

// 32 activations of one token, rounded to int8, and what else products with them need, in a cache
// line.
struct alignas(64) ActivationGroup {
  int8_t q[kGroup];       // in [-127, 127]
  float scale;            // activation = scale * q; 22 significant bits, so that
  float minus_magic;      // = -kMagic * scale is exact
  float sum;              // scale * sum of q, for weights with a min
  float half_sum[2];      // the same of each 16
  int32_t start;          // kMagicBits - 128 * sum of q, for weights stored as q + 128
  int32_t half_start[2];  // kMagicBits - 32 * sum of 16, for weights stored as q + 32
};
static_assert(sizeof(ActivationGroup) == 64);
inline constexpr int kStartOffset = 128;
inline constexpr int kHalfStartOffset = 32;

struct MatmulTile {
  const WeightMatrix* weight;
  int64_t row_begin;  // a multiple of kPanelRows
  int64_t row_end;
  int64_t tokens;
  const float* x;  // [tokens, cols], read by float weights
  int64_t x_stride;
  const ActivationGroup* groups;  // [cols / kGroup, tokens], read by quantized weights
  const float* bias;              // [rows] or null
  float* out;                     // [tokens, rows], row stride out_stride
  int64_t out_stride;
  bool accumulate;
};

struct MatmulKernels {
  size_t scratch_bytes;  // of one thread, aligned to 64

  // x [cols] -> groups [cols / kGroup], `stride` apart. A group with a NaN or an infinity gets
  // scale NaN.
  void (*round_activations)(const float* x, int64_t cols, ActivationGroup* groups, int64_t stride);

  void (*multiply)(const MatmulTile& tile, uint8_t* scratch);
};

extern const MatmulKernels kMatmulScalar;
extern const MatmulKernels kMatmulAvx2;
extern const MatmulKernels kMatmulAvx512;  // needs F, BW, DQ, VL and VNNI
extern const MatmulKernels kMatmulNeon;    // uses the dot product extension where it is present

}  // namespace lola

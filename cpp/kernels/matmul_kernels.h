// What one instruction set does of a matrix product: a tile of rows of one job, by one thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.h"

namespace lola {

inline constexpr int kChunk = 256;          // columns that are read, rounded and summed together
inline constexpr int kMaxTileRows = 64;     // rows of a tile when there are many tokens
inline constexpr int kMaxTileTokens = 512;  // tokens whose sums a thread keeps at a time
inline constexpr int kFewTokens = 8;        // up to here weights are read by row, beyond by panel

// 256 activations of one token, rounded to int8 in groups of 32. Columns past the end are zero.
struct alignas(32) ActivationBlock {
  int8_t q[kChunk];     // in [-127, 127]
  float scale[8];       // activation = scale * q
  float sum32[8];       // scale * sum of q, for weights with a min per 32
  int32_t offset32[8];  // -128 * sum of q: corrects products with weights stored as q + 128
  float sum16[16];      // the same two for groups of 16
  int32_t offset16[16];
};

struct MatmulTile {
  const WeightMatrix* weight;
  int64_t row_begin;
  int64_t row_end;
  int64_t tokens;
  const float* x;  // [tokens, cols], read by float weights
  int64_t x_stride;
  const ActivationBlock* blocks;  // [chunks, tokens], read by quantized weights
  const float* bias;              // [rows] or null
  float* out;                     // [tokens, rows], row stride out_stride
  int64_t out_stride;
  bool accumulate;
};

struct MatmulKernels {
  // Tiles with many tokens begin at a multiple of this, so that the split into tiles changes no
  // result.
  int panel_rows;
  size_t scratch_bytes;  // of one thread, aligned to 64

  // x [cols] -> the blocks of one token, block_stride apart. A group with a NaN or an infinity gets
  // scale NaN.
  void (*round_activations)(const float* x, int64_t cols, ActivationBlock* blocks,
                            int64_t block_stride);

  // At most kMaxTileRows rows when tokens > kFewTokens.
  void (*multiply)(const MatmulTile& tile, uint8_t* scratch);
};

extern const MatmulKernels kMatmulScalar;
extern const MatmulKernels kMatmulAvx2;
extern const MatmulKernels kMatmulAvx512;  // needs F, BW, DQ, VL and VNNI
extern const MatmulKernels kMatmulNeon;    // uses the dot product extension where it is present

}  // namespace lola

// Norms, rotations and gates over rows of activations.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/cuda_check.cuh"
#include "backend/cuda/rounded_row.cuh"

namespace lola {

// The copies of rows that products read, written beside the floats. Null where none is kept.
struct ProductCopy {
  __half* halves;
  int stride;
  int tile_bits;       // halves are for gemm_wide(), in tiles of 2^tile_bits rows; 0: as HalfRows
  RoundedRow rounded;  // of a single row whose width is a multiple of 32

  // Where column i of a row lies. For gemm_wide() the 128 columns that a tile is multiplied with in
  // one step stand together, in the order in which the tensor cores meet them, swizzled.
  __device__ __half* at(int64_t row, int i) const {
    if (tile_bits == 0) return halves + row * stride + column_place(i);
    const int place = (i % 32 / 8 * 2 + i % 8 / 4) * 16 + i % 4 / 2 * 8 + i % 128 / 32 * 2 + i % 2;
    const int in_tile = static_cast<int>(row) & ((1 << tile_bits) - 1);
    const int64_t step = (row >> tile_bits) * (stride / 128) + i / 128;
    return halves + (((step * 2 + place / 64) << tile_bits) + in_tile) * 64 +
           ((place / 8 ^ in_tile) & 7) * 8 + place % 8;
  }
};

void rms_norm(const Stream& stream, const float* x, int64_t rows, int64_t dim, const float* weight,
              float eps, float* out, const ProductCopy& copy);

void copy_rows(const Stream& stream, const float* x, int64_t rows, int64_t width,
               const ProductCopy& copy);

void rope(const Stream& stream, const RopeRows& rows);

// How value i of a row's heads turns: with which other, by what.
struct Turn {
  int other;
  float cosine, sine;
};
__device__ inline Turn turn_of(const RopeRows& rope, int64_t row, int i) {
  const int pairs = static_cast<int>(rope.pairs), turning = min(i, 2 * pairs - 1);
  const bool interleaved = rope.layout == RopeLayout::kInterleaved;
  const int pair = interleaved ? turning / 2 : turning < pairs ? turning : turning - pairs;
  const bool second = turning != (interleaved ? 2 * pair : pair);
  const int step = interleaved ? 1 : pairs;
  const float c = rope.cosine[row * pairs + pair], s = rope.sine[row * pairs + pair];
  if (i > turning) return {i, 1.0f, 0.0f};
  return {second ? turning - step : turning + step, c, second ? s : -s};
}

// Value i of a head after rotation. Without a branch, so that the loads of several values can be
// on their way together.
__device__ inline float rotated(const RopeRows& rope, const float* head, int64_t row, int i) {
  const Turn turn = turn_of(rope, row, i);
  return head[i] * turn.cosine + head[turn.other] * turn.sine;
}

// gate = silu(gate) * up, [rows, width]
void silu_gate(const Stream& stream, float* gate, const float* up, int64_t rows, int64_t width,
               const ProductCopy& copy);

}  // namespace lola

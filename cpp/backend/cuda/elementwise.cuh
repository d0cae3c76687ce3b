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
  bool wide;           // halves are for gemm_wide()
  RoundedRow rounded;  // of a single row whose width is a multiple of 32

  // Where column i of a row of halves lies. For gemm_wide() the columns of a step stand in the
  // order in which the tensor cores meet them.
  __device__ int place(int i) const {
    if (!wide) return i;
    return i / 128 * 128 + (i % 32 / 8 * 2 + i % 8 / 4) * 16 + i % 4 / 2 * 8 + i % 128 / 32 * 2 +
           i % 2;
  }
};

void rms_norm(const Stream& stream, const float* x, int64_t rows, int64_t dim, const float* weight,
              float eps, float* out, const ProductCopy& copy);

void copy_rows(const Stream& stream, const float* x, int64_t rows, int64_t width,
               const ProductCopy& copy);

void rope(const Stream& stream, const RopeRows& rows);

// gate = silu(gate) * up, [rows, width]
void silu_gate(const Stream& stream, float* gate, const float* up, int64_t rows, int64_t width,
               const ProductCopy& copy);

}  // namespace lola

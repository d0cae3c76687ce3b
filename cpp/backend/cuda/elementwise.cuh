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
  RoundedRow rounded;  // of a single row whose width is a multiple of 32
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

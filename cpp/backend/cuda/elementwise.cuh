// Norms, rotations and gates over rows of activations, and what is read off the logits.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/cuda_check.cuh"

namespace lola {

// The half copy that products read (HalfRows) of rows of `width` floats; null where none is kept.
struct HalfCopy {
  __half* data;
  int stride;
};

void rms_norm(const Stream& stream, const float* x, int64_t rows, int64_t dim, const float* weight,
              float eps, float* out, const HalfCopy& half);

void to_halves(const Stream& stream, const float* x, int64_t rows, int64_t width,
               const HalfCopy& half);

void rope(const Stream& stream, float* x, int64_t rows, int64_t heads, int64_t head_dim,
          const float* cosine, const float* sine, int64_t pairs, RopeLayout layout);

// gate = silu(gate) * up, [rows, width]
void silu_gate(const Stream& stream, float* gate, const float* up, int64_t rows, int64_t width,
               const HalfCopy& half);

// Copies row i of logits [rows, vocabulary] to destinations[i], and finds the greedy choice of
// each. parts: scratch of greedy_parts(rows).
void keep_logits(const Stream& stream, const float* logits, int64_t rows, int64_t vocabulary,
                 float* const* destinations, float4* parts, GreedyChoice* choices);
int64_t greedy_parts(int64_t rows);

}  // namespace lola

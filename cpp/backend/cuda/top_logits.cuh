// What is read off rows of logits: the greatest, or the best of them, and what probabilities need.
#pragma once

#include <cstdint>

#include "backend/cuda/cuda_check.cuh"
#include "base/host_device.h"
#include "kernels/top_logits.h"

namespace lola {

// What is found in a row: this, and `best` candidates after it, of which `count` are there.
struct TopRow {
  double total;  // sum of exp(logit - the greatest)
  int64_t count;

  LOLA_HOST_DEVICE Candidate* candidates() { return reinterpret_cast<Candidate*>(this + 1); }
};

struct TopShape {
  int64_t rows;
  int64_t vocabulary;
  int64_t best;  // a power of two; 1: the greatest only

  LOLA_HOST_DEVICE int64_t row_bytes() const {
    return static_cast<int64_t>(sizeof(TopRow)) + best * static_cast<int64_t>(sizeof(Candidate));
  }
};

// As many of the best as the kernels find in such a vocabulary: `wanted`, or 1.
int64_t best_found(int64_t wanted, int64_t vocabulary);

// Copies row i of logits [rows, vocabulary] to destinations[i], and finds the best of it: row i of
// `found`, shape.row_bytes() each. Where best is not 1, totals have the bits that exp_sum() gives.
void keep_logits(const Stream& stream, const float* logits, const TopShape& shape,
                 float* const* destinations, uint8_t* scratch, uint8_t* found);
int64_t keep_scratch_bytes(const TopShape& shape);

}  // namespace lola

// The pairs that compete at a chunk boundary, as the kernels of lola_score.cu and lola_settle.cu
// see them.
#pragma once

#include "backend/cuda/lola_view.cuh"

namespace lola {

// The number of eligible pair i: first the sparse cache's, then those that leave the window.
__device__ inline int eligible_number(const LolaView& view, const RunScratch& scratch,
                                      const DeviceBoundary& boundary, int owner, int i) {
  return i < boundary.cached ? cached_number(view, scratch, boundary.from, owner, i)
                             : boundary.first + i - boundary.cached;
}

__device__ inline int64_t position_of(const LolaView& view, uint8_t* memory,
                                      const PairNumbers& numbers, int owner, int number) {
  if (number >= numbers.cached) return numbers.position + number - numbers.cached;
  return reinterpret_cast<const int64_t*>(
      memory + view.cache_position)[owner * view.sparse_capacity + number];
}

// Eligible pairs among which blocks choose in shared memory; among more it is in device memory.
constexpr int kSharedChoice = 1024;

// Which eligible pairs are absorbed: those that lose, into the next version of the hidden states,
// or all, into imagined ones. In place: sparse caches and hidden states are those of the sessions,
// of float16 pairs among which blocks choose in shared memory.
enum class Absorb { kLost, kImagined, kLostInPlace };

// Where pairs lose by their scores, the sparse caches get their next version too.
void settle_boundaries(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                       const RunScratch& scratch, Absorb what);

}  // namespace lola

// The pairs that compete at a chunk boundary, as the kernels of lola_score.cu, lola_settle.cu and
// lola_absorb.cu see them.
#pragma once

#include "backend/cuda/lola_view.cuh"

namespace lola {

// One owner's, or one head's, part of the scratch of boundary `boundary`.
__device__ inline int64_t part_of(const LolaView& view, const BoundaryScratch& scratch,
                                  int boundary, int parts, int part) {
  return (static_cast<int64_t>(boundary) * parts + part) * scratch.most;
}

// Who owns a sparse cache, and whose window its pairs come from.
struct Owner {
  int index;
  int kv_head;

  __device__ Owner(const LolaView& view, int owner)
      : index(owner), kv_head(view.head_scope ? owner / view.group : owner) {}
};

// Without a branch, so that the loads of several rows can be on their way together.
__device__ inline const uint8_t* eligible_row(const LolaView& view, const DeviceBoundary& boundary,
                                              const Owner& owner, int64_t in_window,
                                              int64_t in_cache, int i) {
  const bool cached = i < boundary.cached;
  const int64_t slot = cached ? i : ring_slot(view, boundary.first_slot, i - boundary.cached);
  const int64_t part = cached ? owner.index : owner.kv_head;
  const int64_t capacity = cached ? view.sparse_capacity : view.ring_capacity;
  return boundary.memory + (cached ? in_cache : in_window) +
         (part * capacity + slot) * view.row_bytes;
}

// Floats of an imagined hidden state, a multiple of four.
__host__ __device__ inline int64_t imagined_size(const LolaView& view) {
  return static_cast<int64_t>(view.features) * view.head_dim + (view.features + 3) / 4 * 4;
}

// The imagined hidden state of a head, with all eligible pairs absorbed: Hs, then s.
__device__ inline float* imagined_state(const LolaView& view, const BoundaryScratch& scratch,
                                        int boundary, int head) {
  const int64_t size = imagined_size(view);
  return scratch.imagined + (static_cast<int64_t>(boundary) * view.heads + head) * size;
}

// Which eligible pairs are absorbed: those that lost, into the hidden states, or all, into imagined
// ones.
enum class Absorb { kLost, kImagined };

// The hidden states of the boundaries' heads, or imagined ones, gain pairs.
void absorb_pairs(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                  const BoundaryScratch& scratch, Absorb what);

}  // namespace lola

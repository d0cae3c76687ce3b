// How kernels find a session's memories of one layer, and the versions of them that a run makes.
#pragma once

#include "backend/cuda/feature_tile.cuh"
#include "backend/cuda/lola_ops.cuh"

namespace lola {

__device__ inline uint8_t* cache_row(const LolaView& view, uint8_t* memory, int64_t offset,
                                     int owner, int64_t place) {
  return memory + offset + (owner * view.sparse_capacity + place) * view.row_bytes;
}

__device__ inline float* floats_at(uint8_t* memory, int64_t offset, int64_t index) {
  return offset < 0 ? nullptr : reinterpret_cast<float*>(memory + offset) + index;
}

__device__ inline HiddenRows hidden_rows(const LolaView& view, uint8_t* memory, int head) {
  const int64_t sum = static_cast<int64_t>(head) * view.features;
  const int64_t state = sum * view.head_dim;
  return {floats_at(memory, view.state, state), floats_at(memory, view.sum, sum),
          floats_at(memory, view.pending_state, state), floats_at(memory, view.pending_sum, sum)};
}

// Floats of Hs and s of a head in scratch memory, a multiple of four.
__host__ __device__ inline int64_t hidden_floats(const LolaView& view) {
  return static_cast<int64_t>(view.features) * view.head_dim + feature_stride(view.features);
}
// The same with what is pending.
__host__ __device__ inline int64_t state_floats(const LolaView& view) {
  return hidden_floats(view) * (view.pending_state < 0 ? 1 : 2);
}

// A head's hidden state in scratch memory.
__device__ inline HiddenRows hidden_at(const LolaView& view, float* states, int64_t place,
                                       int head) {
  float* state = states + (place * view.heads + head) * state_floats(view);
  const int64_t size = static_cast<int64_t>(view.features) * view.head_dim;
  float* pending = view.pending_state < 0 ? nullptr : state + hidden_floats(view);
  return {state, state + size, pending, pending == nullptr ? nullptr : pending + size};
}

__device__ inline HiddenRows hidden_of(const LolaView& view, uint8_t* memory,
                                       const RunScratch& scratch, const Version& version,
                                       int head) {
  return version.state == kOwn ? hidden_rows(view, memory, head)
                               : hidden_at(view, scratch.states, version.state, head);
}

// Who owns a sparse cache, and whose window its pairs come from.
struct Owner {
  int index;
  int kv_head;

  __device__ Owner(const LolaView& view, int owner)
      : index(owner), kv_head(view.head_scope ? owner / view.group : owner) {}
};

// Where an owner's part of a version of the sparse caches begins, in pairs.
__device__ inline int64_t cache_part(const LolaView& view, const Version& version, int owner) {
  return (static_cast<int64_t>(version.cache) * view.owners() + owner) * view.sparse_capacity;
}

// The number of pair i of an owner's sparse cache.
__device__ inline int cached_number(const LolaView& view, const RunScratch& scratch,
                                    const Version& version, int owner, int i) {
  return version.cache == kOwn ? i : scratch.caches[cache_part(view, version, owner) + i];
}

// The stored key of a numbered pair, or its value. Without a branch, so that the loads of several
// rows can be on their way together.
__device__ inline const uint8_t* numbered_row(const LolaView& view, const RunScratch& scratch,
                                              uint8_t* memory, const PairNumbers& numbers,
                                              const Owner& owner, int number, bool value) {
  const int steps = number - numbers.cached, in_pass = steps - numbers.ring_pairs;
  const bool cached = steps < 0, entered = !cached && in_pass >= 0;
  uint8_t* const in_memory = memory + (cached ? (value ? view.cache_v : view.cache_k)
                                              : (value ? view.ring_v : view.ring_k));
  const uint8_t* base = entered ? (value ? scratch.pass_v : scratch.pass_k) : in_memory;
  const int64_t part = cached ? owner.index : owner.kv_head;
  const int64_t capacity = cached    ? view.sparse_capacity
                           : entered ? scratch.tokens
                                     : view.ring_capacity;
  const int64_t slot = cached    ? number
                       : entered ? numbers.pass_row + in_pass
                                 : ring_slot(view, numbers.ring_slot, steps);
  return base + (part * capacity + slot) * view.row_bytes;
}

}  // namespace lola

// How kernels find a session's memories of one layer.
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

}  // namespace lola

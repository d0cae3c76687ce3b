// Sums and maxima over the lanes of a warp.
#pragma once

#include "backend/cuda/cuda_check.cuh"

namespace lola {

__device__ inline float half_warp_sum(float value) {
  for (int offset = 8; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ inline float warp_sum(float value) {
  return half_warp_sum(value + __shfl_xor_sync(~0u, value, 16));
}
__device__ inline float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  }
  return value;
}

}  // namespace lola

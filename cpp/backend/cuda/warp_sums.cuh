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
// Floats in the order of integers: with the other bits turned where they are negative.
__device__ inline int ordered_bits(int bits) { return bits ^ (bits >> 31 & 0x7FFFFFFF); }
__device__ inline float warp_max(float value) {
#if __CUDA_ARCH__ >= 800
  const int most = __reduce_max_sync(~0u, ordered_bits(__float_as_int(value)));
  return __int_as_float(ordered_bits(most));
#else
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  }
  return value;
#endif
}

// Each value summed over a warp; lane l gets the sum of value l * count / 32, in value[0]. count: a
// power of 2 up to 32.
template <int count, int width = 16>
__device__ inline void spread_over_warp(float* value) {
  constexpr int kLeft = count > 1 ? count / 2 : 1;
  const bool upper = (threadIdx.x & width) != 0;
#pragma unroll
  for (int i = 0; i < kLeft; ++i) {
    const float sent = count == 1 || upper ? value[i] : value[i + count / 2];
    const float own = count > 1 && upper ? value[i + count / 2] : value[i];
    value[i] = own + __shfl_xor_sync(~0u, sent, width);
  }
  if constexpr (width > 1) spread_over_warp<kLeft, width / 2>(value);
}

}  // namespace lola

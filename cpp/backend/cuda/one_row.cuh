// Attention of one query by a block of 16 warps: a warp takes every sixteenth pair.
#pragma once

#include "backend/cuda/row_tile.cuh"

namespace lola {

constexpr int kOneWarps = 16;

__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// products[i] = q . vector(i) * scale, a warp per vector.
template <typename Vector>
__device__ inline void one_products(const float* q, int d, int count, float scale,
                                    const Vector& vector, float* products) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 8
  for (int i = warp; i < count; i += kOneWarps) {
    float sum = 0.0f;
#pragma unroll
    for (int c = lane * 4; c < kMaxHeadDim; c += 128) {
      if (c < d) sum += dot4(*reinterpret_cast<const float4*>(q + c), vector(i, c));
    }
    sum = warp_sum(sum);
    if (lane == 0) products[i] = sum * scale;
  }
}

// parts [warp] = this warp's share of the sum of weight(i) vector(i).
template <typename Weight, typename Vector>
__device__ inline void one_weighted(int d, int count, const Weight& weight, const Vector& vector,
                                    float* parts) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float4 sums[kMaxHeadDim / 128] = {};
#pragma unroll 8
  for (int i = warp; i < count; i += kOneWarps) {
    const float w = weight(i);
#pragma unroll
    for (int block = 0; block < kMaxHeadDim / 128; ++block) {
      const int c = lane * 4 + block * 128;
      if (c >= d) continue;
      const float4 x = vector(i, c);
      float4& s = sums[block];
      s = {s.x + w * x.x, s.y + w * x.y, s.z + w * x.z, s.w + w * x.w};
    }
  }
#pragma unroll
  for (int block = 0; block < kMaxHeadDim / 128; ++block) {
    const int c = lane * 4 + block * 128;
    if (c < d) *reinterpret_cast<float4*>(parts + warp * d + c) = sums[block];
  }
}

}  // namespace lola

// Attention of one query by a block of 16 warps: a warp takes every sixteenth pair.
#pragma once

#include "backend/cuda/row_tile.cuh"

namespace lola {

constexpr int kOneWarps = 16;

__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

constexpr int kOneAtOnce = 8;  // vectors of a warp whose loads are on their way together

// products[i] = q . vector(i) * scale, a warp per vector.
template <typename Vector>
__device__ inline void one_products(const float* q, int d, int count, float scale,
                                    const Vector& vector, float* products) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int begin = warp; begin < count; begin += kOneWarps * kOneAtOnce) {
    float sums[kOneAtOnce] = {};
    for (int c = lane * 4; c < d; c += 128) {
      float4 x[kOneAtOnce];
#pragma unroll
      for (int i = 0; i < kOneAtOnce; ++i) x[i] = vector(min(begin + i * kOneWarps, count - 1), c);
      const float4 own = *reinterpret_cast<const float4*>(q + c);
#pragma unroll
      for (int i = 0; i < kOneAtOnce; ++i) sums[i] += dot4(own, x[i]);
    }
#pragma unroll
    for (int i = 0; i < kOneAtOnce; ++i) sums[i] = warp_sum(sums[i]) * scale;
#pragma unroll
    for (int i = 0; i < kOneAtOnce; ++i) {
      if (lane == 0 && begin + i * kOneWarps < count) products[begin + i * kOneWarps] = sums[i];
    }
  }
}

// parts [warp] = this warp's share of the sum of weight(i) vector(i); weight is called once for each
// vector.
template <typename Weight, typename Vector>
__device__ inline void one_weighted(int d, int count, const Weight& weight, const Vector& vector,
                                    float* parts) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float4 sums[kMaxHeadDim / 128] = {};
  for (int begin = warp; begin < count; begin += kOneWarps * kOneAtOnce) {
    float weights[kOneAtOnce];
#pragma unroll
    for (int i = 0; i < kOneAtOnce; ++i) {
      weights[i] = begin + i * kOneWarps < count ? weight(begin + i * kOneWarps) : 0.0f;
    }
#pragma unroll
    for (int block = 0; block < kMaxHeadDim / 128; ++block) {
      const int c = lane * 4 + block * 128;
      if (c >= d) continue;
      float4 x[kOneAtOnce];
#pragma unroll
      for (int i = 0; i < kOneAtOnce; ++i) x[i] = vector(min(begin + i * kOneWarps, count - 1), c);
      float4& s = sums[block];
#pragma unroll
      for (int i = 0; i < kOneAtOnce; ++i) {
        const float w = weights[i];
        s = {s.x + w * x[i].x, s.y + w * x[i].y, s.z + w * x[i].z, s.w + w * x[i].w};
      }
    }
  }
#pragma unroll
  for (int block = 0; block < kMaxHeadDim / 128; ++block) {
    const int c = lane * 4 + block * 128;
    if (c < d) *reinterpret_cast<float4*>(parts + warp * d + c) = sums[block];
  }
}

}  // namespace lola

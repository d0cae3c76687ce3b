// Attention of one query by a block of 16 warps: half a warp takes every 32nd pair, 8 values a
// lane.
#pragma once

#include "backend/cuda/row_tile.cuh"
#include "backend/cuda/warp_sums.cuh"

namespace lola {

constexpr int kOneWarps = 16;
constexpr int kHalfWarps = 2 * kOneWarps;
constexpr int kOneAtOnce = 5;     // vectors of a half warp whose loads are on their way together
constexpr int kOneColumns = 128;  // of a half warp, at a time

// products[i] = q . vector(i) * scale; vector(i, c) gives eight values.
template <typename Vector>
__device__ inline void one_products(const float* q, int d, int count, float scale,
                                    const Vector& vector, float* products) {
  const int half_warp = threadIdx.x / 16, lane = threadIdx.x % 16;
  for (int begin = half_warp; begin - half_warp < count; begin += kHalfWarps * kOneAtOnce) {
    float sums[kOneAtOnce] = {};
    for (int c = lane * 8; c < d; c += kOneColumns) {
      Eight x[kOneAtOnce];
#pragma unroll
      for (int i = 0; i < kOneAtOnce; ++i) x[i] = vector(min(begin + i * kHalfWarps, count - 1), c);
      const Eight own = load_eight(q + c);
#pragma unroll
      for (int i = 0; i < kOneAtOnce * 8; ++i) sums[i / 8] += own.v[i % 8] * x[i / 8].v[i % 8];
    }
#pragma unroll
    for (int i = 0; i < kOneAtOnce; ++i) sums[i] = half_warp_sum(sums[i]) * scale;
#pragma unroll
    for (int i = 0; i < kOneAtOnce; ++i) {
      if (lane == 0 && begin + i * kHalfWarps < count) products[begin + i * kHalfWarps] = sums[i];
    }
  }
}

// parts [warp] = this warp's share of the sum of weight(i) vector(i). weight is called once for
// each vector, by the half warp that has it.
template <typename Weight, typename Vector>
__device__ inline void one_weighted(int d, int count, const Weight& weight, const Vector& vector,
                                    float* parts) {
  const int half_warp = threadIdx.x / 16, lane = threadIdx.x % 16;
  constexpr int kBlocks = kMaxHeadDim / kOneColumns;
  Eight sums[kBlocks] = {};
  for (int begin = half_warp; begin - half_warp < count; begin += kHalfWarps * kOneAtOnce) {
    float weights[kOneAtOnce];
#pragma unroll
    for (int i = 0; i < kOneAtOnce; ++i) {
      weights[i] = begin + i * kHalfWarps < count ? weight(begin + i * kHalfWarps) : 0.0f;
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int c = lane * 8 + block * kOneColumns;
      if (c >= d) continue;
      Eight x[kOneAtOnce];
#pragma unroll
      for (int i = 0; i < kOneAtOnce; ++i) x[i] = vector(min(begin + i * kHalfWarps, count - 1), c);
#pragma unroll
      for (int i = 0; i < kOneAtOnce * 8; ++i)
        sums[block].v[i % 8] += weights[i / 8] * x[i / 8].v[i % 8];
    }
  }
#pragma unroll
  for (int i = 0; i < kBlocks * 8; ++i) {
    const int c = lane * 8 + i / 8 * kOneColumns + i % 8;
    float& sum = sums[i / 8].v[i % 8];
    sum += __shfl_xor_sync(~0u, sum, 16);
    if (threadIdx.x % 32 < 16 && c < d) parts[threadIdx.x / 32 * d + c] = sum;
  }
}

}  // namespace lola

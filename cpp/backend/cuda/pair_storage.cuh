// Keys and values as the memories store them (memory/config.h: PairType), read and written by
// kernels.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "memory/config.h"

namespace lola {

constexpr int kQ8Block = 32;
constexpr int kQ8Bytes = 34;

// Values i to i + 3 of a stored row; i is a multiple of 4.
template <PairType type>
__device__ inline float4 load_four(const uint8_t* row, int i) {
  if constexpr (type == PairType::kF32) {
    return *reinterpret_cast<const float4*>(row + i * 4);
  } else if constexpr (type == PairType::kF16) {
    const uint2 bits = *reinterpret_cast<const uint2*>(row + i * 2);
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
    return {low.x, low.y, high.x, high.y};
  } else {
    const uint8_t* block = row + i / kQ8Block * kQ8Bytes;
    const float scale = __half2float(*reinterpret_cast<const __half*>(block));
    const auto* q = reinterpret_cast<const int8_t*>(block + 2 + i % kQ8Block);
    return {scale * q[0], scale * q[1], scale * q[2], scale * q[3]};
  }
}

struct Eight {
  float v[8];
};

__device__ inline Eight load_eight(const float* from) {
  const auto* at = reinterpret_cast<const float4*>(from);
  const float4 a = at[0], b = at[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

// Values i to i + 7 of a stored row; i is a multiple of 8.
template <PairType type>
__device__ inline Eight load_eight(const uint8_t* row, int i) {
  Eight x;
  if constexpr (type == PairType::kF32) {
    x = load_eight(reinterpret_cast<const float*>(row) + i);
  } else if constexpr (type == PairType::kF16) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + i * 2);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[j]));
      x.v[2 * j] = pair.x;
      x.v[2 * j + 1] = pair.y;
    }
  } else {
    const uint8_t* block = row + i / kQ8Block * kQ8Bytes;
    const float scale = __half2float(*reinterpret_cast<const __half*>(block));
    const auto* q = reinterpret_cast<const int8_t*>(block + 2 + i % kQ8Block);
#pragma unroll
    for (int j = 0; j < 8; ++j) x.v[j] = scale * q[j];
  }
  return x;
}

// A warp stores x [count] as a row.
template <PairType type>
__device__ inline void store_row(const float* x, int count, int lane, uint8_t* row) {
  for (int i = lane; i < count; i += 32) {
    const float value = x[i];
    if constexpr (type == PairType::kF32) {
      reinterpret_cast<float*>(row)[i] = value;
    } else if constexpr (type == PairType::kF16) {
      reinterpret_cast<__half*>(row)[i] = __float2half_rn(value);
    } else {
      // As the CPU's f32_to_q8_0: the scale is rounded first, and is NaN where a value is not
      // finite.
      float largest = fabsf(value), poison = value * 0.0f;
      for (int offset = 16; offset > 0; offset /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
        poison += __shfl_xor_sync(~0u, poison, offset);
      }
      const __half scale = __float2half_rn(fminf(largest / 127.0f, 65504.0f) + poison);
      const float stored = __half2float(scale);
      const float inverse = stored == 0.0f ? 0.0f : 1.0f / stored;
      const float level = fmaxf(-127.0f, fminf(127.0f, value * inverse));
      uint8_t* block = row + i / kQ8Block * kQ8Bytes;
      if (lane == 0) *reinterpret_cast<__half*>(block) = scale;
      block[2 + lane] = static_cast<uint8_t>(static_cast<int8_t>(rintf(level)));
    }
  }
}

// Calls f.template operator()<type>(), once chosen.
template <typename F>
void with_pair_type(PairType type, const F& f) {
  switch (type) {
    case PairType::kF32:
      return f.template operator()<PairType::kF32>();
    case PairType::kF16:
      return f.template operator()<PairType::kF16>();
    case PairType::kQ8_0:
      return f.template operator()<PairType::kQ8_0>();
  }
}

}  // namespace lola

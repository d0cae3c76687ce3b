// One row of activations as 8-bit integers, and its products with pieces of weights.
#pragma once

#include "backend/cuda/weight_decode.cuh"

namespace lola {

// Values are rounded in groups of 16, with one scale each. Eight of them lie in the order 0, 4, 1,
// 5, 2, 6, 3, 7, as codes do once they are bytes.
struct RoundedRow {
  int8_t* q;       // [columns]
  float2* groups;  // scale, and scale times the sum of its 16
};

// Value i of a row, by half a warp that holds 16 neighbours; mask: the lanes that call.
__device__ inline void store_rounded(const RoundedRow& row, int i, float value,
                                     unsigned mask = ~0u) {
  float largest = fabsf(value);
  for (int offset = 8; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(mask, largest, offset));
  }
  const float scale = largest / 127.0f;
  const int q = largest == 0.0f ? 0 : __float2int_rn(value / scale);
  int sum = q;
  for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(mask, sum, offset);
  row.q[i / 8 * 8 + i % 4 * 2 + i / 4 % 2] = static_cast<int8_t>(q);
  if (i % 16 == 0) row.groups[i / 16] = {scale, scale * static_cast<float>(sum)};
}

// Weights 8 index to 8 index + 7 of a piece as bytes, in the order of a rounded row.
template <Encoding e>
__device__ inline void code_bytes(const Piece<e>& piece, int index, uint32_t& first,
                                  uint32_t& second) {
  if constexpr (code_vectors(e) == 2) {
    first = component(piece.codes[index / 2], index % 2 * 2);
    second = component(piece.codes[index / 2], index % 2 * 2 + 1);
    return;
  }
  const uint32_t word = component(piece.codes[0], index);
  if constexpr (e == Encoding::kIQ4_NL || e == Encoding::kIQ4_XS || e == Encoding::kMXFP4) {
    uint32_t low, high;
    table_bytes(code_table<e>(), word, low, high);
    first = __byte_perm(low, high, 0x6420);
    second = __byte_perm(low, high, 0x7531);
    return;
  }
  first = word & 0x0F0F0F0Fu;
  second = word >> 4 & 0x0F0F0F0Fu;
  if constexpr (e == Encoding::kQ5_K) {
    const uint32_t high = piece.high[0] >> index * 4;
    first |= (high & 0x00010001u) << 4 | (high & 0x00040004u) << 10;
    second |= (high & 0x00020002u) << 3 | (high & 0x00080008u) << 9;
  }
  if constexpr (e == Encoding::kQ6_K) {
    const uint32_t high = piece.high[index / 2] >> index % 2 * 8;
    first |= (high & 0x00030003u) << 4 | (high & 0x00300030u) << 8;
    second |= (high & 0x000C000Cu) << 2 | (high & 0x00C000C0u) << 6;
  }
}

// The product of a piece with 32 rounded values; group: of the first 16, then of the last.
template <Encoding e>
__device__ inline float rounded_product(const Piece<e>& piece, const uint4 (&x)[2],
                                        const float4& group) {
  int dots[2] = {0, 0};
#pragma unroll
  for (int index = 0; index < 4; ++index) {
    uint32_t first, second;
    code_bytes<e>(piece, index, first, second);
    const int a = static_cast<int>(component(x[index / 2], index % 2 * 2));
    const int b = static_cast<int>(component(x[index / 2], index % 2 * 2 + 1));
    dots[index / 2] = __dp4a(static_cast<int>(first), a, dots[index / 2]);
    dots[index / 2] = __dp4a(static_cast<int>(second), b, dots[index / 2]);
  }
  const float product =
      group.x * static_cast<float>(dots[0]) + group.z * static_cast<float>(dots[1]);
  if constexpr (e == Encoding::kInteger) {
    const float4& f = piece.factors;
    return group.x * f.x * static_cast<float>(dots[0]) +
           group.z * f.y * static_cast<float>(dots[1]) - f.z * group.y - f.w * group.w;
  } else if constexpr (has_two_levels(e)) {
    const float2 super = __half22float2(as_half2(piece.super));
    const int low = static_cast<int>(piece.scale & 0xFFu),
              high = static_cast<int>(piece.scale >> 8);
    if constexpr (e == Encoding::kQ6_K) {
      const int s = static_cast<int8_t>(low), t = static_cast<int8_t>(high);
      return super.x *
             (group.x * static_cast<float>(s * dots[0]) +
              group.z * static_cast<float>(t * dots[1]) -
              32.0f * (static_cast<float>(s) * group.y + static_cast<float>(t) * group.w));
    } else if constexpr (e == Encoding::kIQ4_XS) {
      return super.x * static_cast<float>(static_cast<int8_t>(low)) * product;
    } else {
      return super.x * static_cast<float>(low) * product -
             super.y * static_cast<float>(high) * (group.y + group.w);
    }
  } else {
    const float scale = __half2float(__ushort_as_half(static_cast<uint16_t>(piece.scale)));
    return scale * (e == Encoding::kQ4_0 ? product - 8.0f * (group.y + group.w) : product);
  }
}

}  // namespace lola

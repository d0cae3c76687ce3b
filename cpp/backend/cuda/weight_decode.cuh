// Pieces of stored weights (weight_layout.h) as float16 pairs, in registers.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/weight_layout.h"

namespace lola {

// A stored matrix, as kernels see it.
struct DeviceMatrix {
  const uint4* codes;
  const uint8_t* high;
  const uint8_t* scales;
  const uint32_t* supers;
  Encoding encoding;
  int rows;
  int steps;
  int blocks;
};

inline DeviceMatrix device_matrix(QuantType type, const uint8_t* data, int64_t rows, int64_t cols) {
  const WeightLayout layout = weight_layout(type, rows, cols);
  return {reinterpret_cast<const uint4*>(data),
          data + layout.high,
          data + layout.scales,
          reinterpret_cast<const uint32_t*>(data + layout.supers),
          layout.encoding,
          static_cast<int>(rows),
          static_cast<int>(layout.steps),
          static_cast<int>(layout.blocks)};
}

constexpr bool has_two_levels(Encoding e) {
  return e == Encoding::kIQ4_XS || e == Encoding::kQ4_K || e == Encoding::kQ5_K ||
         e == Encoding::kQ6_K;
}
constexpr int code_vectors(Encoding e) {
  return e == Encoding::kF16 ? 4 : e == Encoding::kQ8_0 || e == Encoding::kInteger ? 2 : 1;
}
constexpr int high_words(Encoding e) {
  return e == Encoding::kQ5_K ? 1 : e == Encoding::kQ6_K ? 2 : 0;
}

// A piece as it is stored; loading it costs no arithmetic.
template <Encoding e>
struct Piece {
  uint4 codes[code_vectors(e)];
  uint32_t high[high_words(e) + 1];  // one more: no array is empty
  uint32_t scale;
  uint32_t super;
  float4 factors;  // of kInteger
};

// Weights are read once a step: they should not push anything out of the first-level cache.
__device__ inline uint4 stream_load(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

constexpr int64_t kHalfChunks = kSlabPieces * kPieceWeights / 8;  // 16 bytes of float16 of a step

// place: row % 16 * 4 + piece % 4.
template <Encoding e>
__device__ inline Piece<e> load_piece(const DeviceMatrix& m, int row_tile, int step, int place) {
  Piece<e> piece;
  const int64_t slab = static_cast<int64_t>(row_tile) * m.steps + step;
  const int64_t at = slab * kSlabPlaces + place;
#pragma unroll
  for (int v = 0; v < code_vectors(e); ++v) {
    const int64_t row = static_cast<int64_t>(row_tile) * kSlabRows + place / kSlabPieces;
    const int64_t vector = e == Encoding::kF16 ? (row * m.steps + step) * kHalfChunks +
                                                     v * kSlabPieces + place % kSlabPieces
                                               : (slab * code_vectors(e) + v) * kSlabPlaces + place;
    piece.codes[v] = stream_load(m.codes + vector);
  }
  if constexpr (high_words(e) == 1) {
    piece.high[0] = __ldg(reinterpret_cast<const uint32_t*>(m.high) + at);
  }
  if constexpr (high_words(e) == 2) {
    const uint2 high = __ldg(reinterpret_cast<const uint2*>(m.high) + at);
    piece.high[0] = high.x;
    piece.high[1] = high.y;
  }
  if constexpr (e == Encoding::kInteger) {
    piece.factors = __ldg(reinterpret_cast<const float4*>(m.scales) + at);
  } else if constexpr (e != Encoding::kF16) {
    piece.scale = __ldg(reinterpret_cast<const uint16_t*>(m.scales) + at);
  }
  if constexpr (has_two_levels(e)) {
    const int64_t block = static_cast<int64_t>(row_tile) * m.blocks + step / 2;
    piece.super = __ldg(m.supers + block * kSlabRows + place / kSlabPieces);
  }
  return piece;
}

__device__ inline __half2 as_half2(uint32_t bits) { return *reinterpret_cast<__half2*>(&bits); }

// Small integers become float16 by their place in the significand of 1024, exactly.
constexpr uint32_t kHalf1024 = 0x64006400u;

// (bits & mask) | more, which the compiler would make two instructions of.
__device__ inline uint32_t and_or(uint32_t bits, uint32_t mask, uint32_t more) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(bits), "r"(mask), "r"(more));
  return out;
}

// Codes at bits 0 and up of each half, upon 1024.
__device__ inline __half2 low_codes(uint32_t bits, float bias) {
  return __hsub2(as_half2(bits), __float2half2_rn(1024.0f + bias));
}
// Codes at bits 4 and up of each half, upon 1024.
__device__ inline __half2 high_codes(uint32_t bits, float bias) {
  return __hfma2(as_half2(bits), __float2half2_rn(0.0625f), __float2half2_rn(-64.0f - bias));
}

// weight = scale * code - min, for the first and the last 16 weights of a piece.
struct Factors {
  __half2 scale[2];
  __half2 min;
  __half2 min_last;  // of the last 16, for kInteger
};

template <Encoding e>
__device__ inline Factors factors_of(const Piece<e>& piece) {
  Factors f{};
  if constexpr (e == Encoding::kInteger) {
    f.scale[0] = __float2half2_rn(piece.factors.x);
    f.scale[1] = __float2half2_rn(piece.factors.y);
    f.min = __float2half2_rn(piece.factors.z);
    f.min_last = __float2half2_rn(piece.factors.w);
  } else if constexpr (has_two_levels(e)) {
    const float2 super = __half22float2(as_half2(piece.super));
    const auto low = static_cast<uint8_t>(piece.scale),
               high = static_cast<uint8_t>(piece.scale >> 8);
    if constexpr (e == Encoding::kQ4_K || e == Encoding::kQ5_K) {
      const __half2 both = __hmul2(as_half2(piece.super),
                                   low_codes(__byte_perm(piece.scale, kHalf1024, 0x7170), 0.0f));
      f.scale[0] = f.scale[1] = __low2half2(both);
      f.min = __high2half2(both);
    } else if constexpr (e == Encoding::kQ6_K) {
      f.scale[0] = __float2half2_rn(super.x * static_cast<float>(static_cast<int8_t>(low)));
      f.scale[1] = __float2half2_rn(super.x * static_cast<float>(static_cast<int8_t>(high)));
    } else {
      f.scale[0] = __float2half2_rn(super.x * static_cast<float>(static_cast<int8_t>(low)));
      f.scale[1] = f.scale[0];
    }
  } else if constexpr (e != Encoding::kF16) {
    f.scale[0] = as_half2(piece.scale | piece.scale << 16);
    f.scale[1] = f.scale[0];
  }
  return f;
}

// Eight nibble codes with what stands above them, as integers in float16.
template <Encoding e>
__device__ inline void linear_codes(const Piece<e>& piece, uint32_t word, int index,
                                    __half2 out[4]) {
  constexpr float kBias = e == Encoding::kQ4_0 ? 8.0f : e == Encoding::kQ6_K ? 32.0f : 0.0f;
  uint32_t bits[4] = {kHalf1024, kHalf1024, kHalf1024, kHalf1024};
  if constexpr (e == Encoding::kQ5_K) {
    const uint32_t high = piece.high[0] >> index * 4;
    bits[0] = and_or(high << 4, 0x00100010u, kHalf1024);
    bits[1] = and_or(high << 7, 0x01000100u, kHalf1024);
    bits[2] = and_or(high << 2, 0x00100010u, kHalf1024);
    bits[3] = and_or(high << 5, 0x01000100u, kHalf1024);
  }
  if constexpr (e == Encoding::kQ6_K) {
    const uint32_t high = piece.high[index / 2] >> index % 2 * 8;
    bits[0] = and_or(high << 4, 0x00300030u, kHalf1024);
    bits[1] = and_or(high << 6, 0x03000300u, kHalf1024);
    bits[2] = and_or(high, 0x00300030u, kHalf1024);
    bits[3] = and_or(high << 2, 0x03000300u, kHalf1024);
  }
  bits[0] = and_or(word, 0x000F000Fu, bits[0]);
  bits[1] = and_or(word, 0x00F000F0u, bits[1]);
  bits[2] = and_or(word >> 8, 0x000F000Fu, bits[2]);
  bits[3] = and_or(word >> 8, 0x00F000F0u, bits[3]);
  out[0] = low_codes(bits[0], kBias);
  out[1] = high_codes(bits[1], kBias);
  out[2] = low_codes(bits[2], kBias);
  out[3] = high_codes(bits[3], kBias);
}

// Two int8 in the low bytes of each half.
__device__ inline __half2 byte_codes(uint32_t bits) {
  return __hsub2(as_half2(((bits ^ 0x00800080u) & 0x00FF00FFu) | kHalf1024),
                 __float2half2_rn(1024.0f + 128.0f));
}

// The table of int8 values that a nibble chooses from, four to a word.
template <Encoding e>
__device__ inline uint4 code_table() {
  if constexpr (e == Encoding::kMXFP4) return {0x03020100u, 0x0C080604u, 0xFDFEFF00u, 0xF4F8FAFCu};
  return {0xBFAD9881u, 0xF6EADDCFu, 0x26190D01u, 0x71594535u};
}

// What eight nibbles choose: of the first four, then of the others.
__device__ inline void table_bytes(uint4 table, uint32_t word, uint32_t& first, uint32_t& second) {
  const uint32_t blend = 0x32103210u | (word & 0x88888888u) >> 1;
  const uint32_t index = word & 0x77777777u;
  first = __byte_perm(__byte_perm(table.x, table.y, index), __byte_perm(table.z, table.w, index),
                      blend);
  second = __byte_perm(__byte_perm(table.x, table.y, index >> 16),
                       __byte_perm(table.z, table.w, index >> 16), blend >> 16);
}

__device__ inline void table_codes(uint4 table, uint32_t word, __half2 out[4]) {
  uint32_t first, second;
  table_bytes(table, word, first, second);
  out[0] = byte_codes(__byte_perm(first, second, 0x0400));
  out[1] = byte_codes(__byte_perm(first, second, 0x0501));
  out[2] = byte_codes(__byte_perm(first, second, 0x0602));
  out[3] = byte_codes(__byte_perm(first, second, 0x0703));
}

__device__ inline uint32_t component(uint4 v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Weights 8 index to 8 index + 7 of the piece, in order; index < 4 is known to the compiler.
template <Encoding e>
__device__ inline void decode_eight(const Piece<e>& piece, const Factors& f, int index,
                                    __half2 out[4]) {
  if constexpr (e == Encoding::kF16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = as_half2(component(piece.codes[index], i));
    return;
  }
  if constexpr (code_vectors(e) == 2) {
    const uint4 codes = piece.codes[index / 2];
    const uint32_t first = component(codes, index % 2 * 2);
    const uint32_t second = component(codes, index % 2 * 2 + 1);
    out[0] = byte_codes(first);
    out[1] = byte_codes(second);
    out[2] = byte_codes(first >> 8);
    out[3] = byte_codes(second >> 8);
  } else if constexpr (e == Encoding::kIQ4_NL || e == Encoding::kIQ4_XS || e == Encoding::kMXFP4) {
    table_codes(code_table<e>(), component(piece.codes[0], index), out);
  } else if constexpr (code_vectors(e) == 1) {
    linear_codes<e>(piece, component(piece.codes[0], index), index, out);
  }
  constexpr bool kHasMin = e == Encoding::kQ4_K || e == Encoding::kQ5_K || e == Encoding::kInteger;
  const __half2 min = e == Encoding::kInteger && index >= 2 ? f.min_last : f.min;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __half2 scale = f.scale[index / 2];
    out[i] = kHasMin ? __hfma2(out[i], scale, __hneg2(min)) : __hmul2(out[i], scale);
  }
}

// Calls body.template run<encoding>(), once chosen.
template <typename Body>
__device__ inline void with_encoding(Encoding encoding, const Body& body) {
  switch (encoding) {
    case Encoding::kQ4_0:
      return body.template run<Encoding::kQ4_0>();
    case Encoding::kIQ4_NL:
      return body.template run<Encoding::kIQ4_NL>();
    case Encoding::kMXFP4:
      return body.template run<Encoding::kMXFP4>();
    case Encoding::kIQ4_XS:
      return body.template run<Encoding::kIQ4_XS>();
    case Encoding::kQ4_K:
      return body.template run<Encoding::kQ4_K>();
    case Encoding::kQ5_K:
      return body.template run<Encoding::kQ5_K>();
    case Encoding::kQ6_K:
      return body.template run<Encoding::kQ6_K>();
    case Encoding::kQ8_0:
      return body.template run<Encoding::kQ8_0>();
    case Encoding::kInteger:
      return body.template run<Encoding::kInteger>();
    case Encoding::kF16:
      return body.template run<Encoding::kF16>();
    case Encoding::kF32:
      break;
  }
}

}  // namespace lola

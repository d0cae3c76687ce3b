// Exact pairs in the memory of a session: the pair of position p in row p % capacity of a ring, the
// sliding window, or of a page of a KV cache.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/elementwise.cuh"
#include "backend/cuda/lola_plan.h"
#include "backend/cuda/matmul.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {

struct PairRing {
  // Offsets in the session's memory, or in a page: [kv_heads, capacity, row_bytes].
  int64_t ring_k, ring_v;
  int64_t ring_capacity;
  int64_t row_bytes;
  PairType type;
  int heads, kv_heads, head_dim;
  int group;  // query heads of a kv head
};

__device__ inline uint8_t* ring_row(const PairRing& ring, uint8_t* memory, int64_t offset,
                                    int kv_head, int64_t slot) {
  return memory + offset + (kv_head * ring.ring_capacity + slot) * ring.row_bytes;
}

// The slot `steps` <= capacity after `slot`: a division would cost more than all else that finds a
// row, and a loop would keep loads from being in flight together.
__device__ inline int64_t ring_slot(const PairRing& ring, int64_t slot, int steps) {
  const int64_t sum = slot + steps;
  return sum >= ring.ring_capacity ? sum - ring.ring_capacity : sum;
}

enum class PairTarget {
  kRing,   // the sessions' rings, which keep the latest
  kPages,  // the sessions' pages
  kPass,   // memory with a row for each token of the pass, as if that were the ring
};

// The pairs of the pieces' tokens enter. pass: of kPass.
void append_pairs(const Stream& stream, const PairRing& ring, const PieceSpan& pieces,
                  const AttentionRows& rows, PairTarget target, uint8_t* pass = nullptr);

// Where the outputs of queries go: floats, and the copies that products read.
struct AttentionOutput {
  float* out;
  ProductCopy copy;
  int width;  // heads * head_dim

  struct Place {
    float* out;
    __half* half;
    __device__ void put(float value) const {
      *out = value;
      *half = __float2half_rn(value * kActivationScale);
    }
  };
  __device__ Place place(int64_t row, int column) const {
    return {out + row * width + column, copy.at(row, column)};
  }
  __device__ void put(int64_t row, int column, float value) const { place(row, column).put(value); }
  // The first `count` of a warp's rows, from `row` on; columns [0, head_dim) go to `first` and on.
  template <int kGroups>
  __device__ void put_rows(const Lane& lane, int64_t row, int count, int first, int head_dim,
                           const RowSums<kGroups>& sums) const {
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
      const int i = n % 2, column = n / 2 * kGroupColumns + lane.quarter * 8;
      if (lane.row + 8 * i >= count || column >= head_dim) continue;
      put_eight(row + lane.row + 8 * i, first + column,
                [&](int j) { return sums.at(n / 2, i, j); });
    }
  }
  // Columns from one on that is a multiple of 8.
  template <typename Value>
  __device__ void put_eight(int64_t row, int column, const Value& value) const {
    auto* to = reinterpret_cast<float4*>(out + row * width + column);
    to[0] = {value(0), value(1), value(2), value(3)};
    to[1] = {value(4), value(5), value(6), value(7)};
    __align__(16) __half2 halves[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      halves[j] =
          __floats2half2_rn(value(2 * j) * kActivationScale, value(2 * j + 1) * kActivationScale);
    }
    if (copy.tile_bits == 0) {
      *reinterpret_cast<uint4*>(copy.at(row, column)) = *reinterpret_cast<const uint4*>(halves);
      return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      *reinterpret_cast<__half2*>(copy.at(row, column + 2 * j)) = halves[j];
    }
  }
  // By whole warps of neighbours.
  __device__ void put_rounded(int64_t row, int column, float value) const {
    put(row, column, value);
    if (copy.rounded.q != nullptr) store_rounded(copy.rounded, column, value);
  }
  // Columns past the last head, by one block.
  __device__ void pad(int64_t row) const {
    for (int i = width + threadIdx.x; i < copy.stride; i += blockDim.x) {
      *copy.at(row, i) = __half(0.0f);
    }
  }
};

// Whether a copy of one row's output is rounded by the kernels that answer one query.
inline bool rounds_heads(const PairRing& ring) { return ring.head_dim % 32 == 0; }

}  // namespace lola

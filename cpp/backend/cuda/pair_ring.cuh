// Exact pairs in the memory of a session: the pair of position p in row p % capacity of a ring, the
// sliding window, or of a page of a KV cache.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/elementwise.cuh"
#include "backend/cuda/lola_plan.h"
#include "backend/cuda/matmul.cuh"

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

// The pairs of the pieces' tokens enter: a ring, or the pages of the pieces.
void append_pairs(const Stream& stream, const PairRing& ring, const PieceSpan& pieces,
                  const AttentionRows& rows, bool paged);

// Where the outputs of queries go: floats, and the copies that products read.
struct AttentionOutput {
  float* out;
  ProductCopy copy;
  int width;  // heads * head_dim

  __device__ void put(int64_t row, int column, float value) const {
    out[row * width + column] = value;
    copy.halves[row * copy.stride + copy.place(column)] = __float2half_rn(value * kActivationScale);
  }
  // By whole warps of neighbours.
  __device__ void put_rounded(int64_t row, int column, float value) const {
    put(row, column, value);
    if (copy.rounded.q != nullptr) store_rounded(copy.rounded, column, value);
  }
  // Columns past the last head, by one block.
  __device__ void pad(int64_t row) const {
    for (int i = width + threadIdx.x; i < copy.stride; i += blockDim.x) {
      copy.halves[row * copy.stride + copy.place(i)] = __half(0.0f);
    }
  }
};

// Whether a copy of one row's output is rounded by the kernels that answer one query.
inline bool rounds_heads(const PairRing& ring) { return ring.head_dim % 32 == 0; }

}  // namespace lola

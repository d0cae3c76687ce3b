// A query's exact pairs in a block of a cluster: by tensor cores, so that no lane waits for sums of
// others. Weights and queries are each the sum of two float16, as exact as the sums are.
#pragma once

#include "backend/cuda/cluster_block.cuh"
#include "backend/cuda/matmul.cuh"

namespace lola {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Four 8 by 8 tiles of float16, whose rows lanes 0 to 7, 8 to 15, ... point at.
struct FourTiles {
  uint32_t tile[4];

  __device__ const __half2* halves() const { return reinterpret_cast<const __half2*>(tile); }
};
template <bool transposed>
__device__ inline FourTiles load_tiles(const void* row) {
  FourTiles t;
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(t.tile[0]), "=r"(t.tile[1]), "=r"(t.tile[2]), "=r"(t.tile[3])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(t.tile[0]), "=r"(t.tile[1]), "=r"(t.tile[2]), "=r"(t.tile[3])
                 : "r"(shared_address(row)));
  }
  return t;
}
__device__ inline uint32_t transposed_tile(uint32_t tile) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(tile));
  return out;
}

// A warp's share: all pairs of the block, and kDim / kExactWarps columns of their values. A product
// has 16 pairs or columns by both parts of up to four heads; lane l has rows l / 4 and l / 4 + 8 of
// it, and head l % 4.
template <typename S>
struct ExactShare {
  static constexpr int kSteps = S::kDim / 16, kTiles = S::kDim / S::kExactWarps / 16;

  const ClusterBlock<S>& block;
  int first_column;
  int lane;
  float max = -INFINITY, sum = 0.0f;  // of the lane's head; sum: of its pairs
  float out[kTiles][4] = {};

  __device__ ExactShare(const ClusterBlock<S>& own, int warp)
      : block(own),
        first_column(warp * (S::kDim / S::kExactWarps)),
        lane(static_cast<int>(threadIdx.x) % 32) {}

  __device__ const uint8_t* row(const uint8_t* rows, int i) const {
    return rows + min(i, block.pairs - 1) * S::kPairRow;
  }

  // logits [2] = of pairs begin + lane / 4, and 8 further.
  __device__ void find_logits(const uint32_t (&q)[kSteps][2], int begin, float* logits) const {
    const uint8_t* keys = row(block.m.pairs, begin + lane % 16) + lane / 16 * 16;
    float sums[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      mma(sums[step % 2], load_tiles<false>(keys + step * 32).halves(), q[step][0], q[step][1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float logit =
          sums[0][2 * i] + sums[1][2 * i] + (sums[0][2 * i + 1] + sums[1][2 * i + 1]);
      logits[i] = begin + lane / 4 + 8 * i < block.pairs ? logit : -INFINITY;
    }
  }

  // What 32 pairs add.
  __device__ void add(const uint32_t (&q)[kSteps][2], int begin) {
    float weights[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    const bool more = begin + 16 < block.pairs;
    find_logits(q, begin, weights);
    if (more) find_logits(q, begin + 16, weights + 2);
    float most = fmaxf(max, fmaxf(fmaxf(weights[0], weights[1]), fmaxf(weights[2], weights[3])));
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
    }
    const float factor = __expf(max - most);
    max = most;
    sum *= factor;
    uint32_t tiles[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[i] = __expf(weights[i] - most);
      sum += weights[i];
      const __half2 halves = in_halves(weights[i]);
      tiles[i] = transposed_tile(*reinterpret_cast<const uint32_t*>(&halves));
    }
    const uint8_t* values =
        block.m.pairs + block.own_pairs() * S::kPairRow + (first_column + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[t][i] *= factor;
      const int i = begin + lane % 8 + lane / 16 * 8;
      mma(out[t], load_tiles<true>(row(values, i) + t * 32).halves(), tiles[0], tiles[1]);
      if (more)
        mma(out[t], load_tiles<true>(row(values, i + 16) + t * 32).halves(), tiles[2], tiles[3]);
    }
  }

  __device__ void leave(Barrier& joined) const {
    const int h = lane % 4;
#pragma unroll
    for (int i = 0; i < 2 * kTiles && h < S::kHeads; ++i) {
      const int o = h * S::kDim + first_column + i * 8 + lane / 4;
      const float value = out[i / 2][i % 2 * 2] + out[i / 2][i % 2 * 2 + 1];
      send(block.m.exact + block.rank * kOutputs + o % kOutputs, value, joined, o / kOutputs);
    }
    if (first_column > 0) return;
    float all = sum;
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) all += __shfl_xor_sync(~0u, all, offset);
    const int to = lane * kOutputs / S::kDim;  // the head that block `lane` joins
    const float2 numbers = {__shfl_sync(~0u, max, to), __shfl_sync(~0u, all, to)};
    if (lane < S::kBlocks) send(block.m.exact_numbers + block.rank, numbers, joined, lane);
  }
};

template <typename S>
__device__ inline void answer_exact(const ClusterBlock<S>& block, int warp, Barrier& joined) {
  ExactShare<S> share(block, warp);
  uint32_t q[S::kDim / 16][2];
  const int lane = threadIdx.x % 32;
  const uint8_t* queries =
      block.m.queries + lane % 8 % (2 * S::kHeads) * S::kPairRow + lane / 8 * 16;
#pragma unroll
  for (int step = 0; step < S::kDim / 16; step += 2) {
    const FourTiles t = load_tiles<false>(queries + step * 32);
    q[step][0] = t.tile[0], q[step][1] = t.tile[1];
    q[step + 1][0] = t.tile[2], q[step + 1][1] = t.tile[3];
  }
#pragma unroll 1
  for (int begin = 0; begin < block.pairs; begin += 32) share.add(q, begin);
  share.leave(joined);
}
#endif

}  // namespace lola

// What one block of a cluster does for a single query (lola_attend_cluster.cu).
#pragma once

#include "backend/cuda/cluster_memory.cuh"
#include "backend/cuda/query_share.cuh"
#include "backend/cuda/warp_sums.cuh"
#include "lola/mixing.h"

namespace lola {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// kBytes of a row on their way to shared memory, by half a warp.
template <int kBytes>
__device__ inline void bring_row(void* to, const uint8_t* from) {
#pragma unroll
  for (int at = 0; at < kBytes; at += 256) {
    const int own = at + static_cast<int>(threadIdx.x) % 16 * 16;
    if (own < kBytes) copy_ahead(static_cast<uint8_t*>(to) + own, from + own, true);
  }
}

// x as two float16 that add up to it.
__device__ inline __half2 in_halves(float x) {
  const __half high = __float2half_rn(x);
  return __halves2half2(high, __float2half_rn(x - __half2float(high)));
}

template <typename S>
struct ClusterBlock {
  const LolaView& view;
  const DevicePiece& piece;
  const ClusterMemory<S> m;
  const int rank, unit, kv_head, first_head, heads;
  const SeenPairs seen;
  int first, pairs;               // of the exact pairs
  int map_first, map_rows, room;  // of the rows of a head's map, and for how many there is room

  __device__ ClusterBlock(const LolaView& layer, const DevicePiece& own, uint8_t* shared)
      : view(layer),
        piece(own),
        m(shared, layer),
        rank(blockIdx.x),
        unit(blockIdx.y),
        kv_head(blockIdx.z),
        first_head(kv_head * layer.group + unit * S::kHeads),
        heads(min(S::kHeads, layer.group - unit * S::kHeads)),
        seen{layer, own, kv_head, layer.head_scope ? first_head : kv_head} {
    const int count = seen.count(), each = share_of<S::kBlocks>(count);
    first = rank * each;
    pairs = max(min(count - first, each), 0);
    const auto map_size = static_cast<int>(layer.map.map_size);
    const int mapped = share_of<S::kBlocks>(map_size);
    map_first = rank * mapped;
    map_rows = max(min(map_size - map_first, mapped), 0);
    room = room_of<S>(layer);
  }

  // For how many exact pairs there is room.
  __device__ int own_pairs() const {
    return share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
  }
  __device__ int newest() const { return seen.window() - 1; }

  // All that does not depend on the query, but for the pair that enters with it; half a warp a row.
  // The warps that read the pairs bring them, the others what they read.
  __device__ void bring(bool linear) const {
    constexpr int kHalfWarps = kClusterThreads / 32;  // of each of both kinds
    const int half_warp = threadIdx.x / 16, count = linear ? map_rows * S::kHeads : 0;
#pragma unroll 1
    for (int i = half_warp - kHalfWarps; i >= 0 && i < count; i += kHalfWarps) bring_features(i);
    const int own = half_warp < kHalfWarps ? pairs : 0;
#pragma unroll 1
    for (int i = half_warp; i < own; i += kHalfWarps) {
      if (first + i == newest()) continue;
      const bool recent = first + i < seen.window();
      const uint8_t* key = seen.row(first + i, view.ring_k, view.cache_k);
      uint8_t* to = m.pairs + i * S::kPairRow;
      bring_row<S::kRow>(to, key);
      bring_row<S::kRow>(to + own_pairs() * S::kPairRow,
                         key + (recent ? view.ring_v - view.ring_k : view.cache_v - view.cache_k));
    }
    end_copies();
  }

  // Row i of the block's: of a head's map, and of its hidden states.
  __device__ void bring_features(int i) const {
    constexpr int kBytes = 4 * S::kDim;
    const int map_size = static_cast<int>(view.map.map_size), planes = planes_of(view);
    const int head = first_head + min(i % S::kHeads, heads - 1), j = map_first + i / S::kHeads;
    const int place = room * S::kHeads, feature = head * view.features + j;
    float* to = m.rows + i * S::kDim;
    bring_row<kBytes>(to, reinterpret_cast<const uint8_t*>(view.query_map) +
                              int64_t{head * map_size + j} * kBytes);
#pragma unroll 1
    for (int set = 0; set < sets_of(view); ++set) {
      const bool pending = set >= planes;
      const int own = feature + set % planes * map_size;
      bring_row<kBytes>(
          to + (1 + set) * place * S::kDim,
          piece.memory + (pending ? view.pending_state : view.state) + int64_t{own} * kBytes);
      if (threadIdx.x % 16 > 0) continue;
      copy_float_ahead(m.hidden_sums + set * place + i,
                       floats_at(piece.memory, pending ? view.pending_sum : view.sum, own), true);
    }
  }

  // A thread has one column of some heads: of the queries, and of the pair that enters.
  static constexpr int kStep = kClusterThreads / S::kDim, kEach = (S::kHeads + 1 + kStep) / kStep;
  struct Sources {
    const float* head[kEach];
    int count;  // of heads
  };
  // Found before the query is there: the compiler would do it after.
  __device__ Sources find_query(const AttentionRows& rows) const {
    const float* q = rows.q + (int64_t{piece.row} * view.heads + first_head) * S::kDim;
    const int64_t in = (int64_t{piece.row} * view.kv_heads + kv_head) * S::kDim;
    const bool enters = has_newest();
    Sources sources{{}, enters ? S::kHeads + 2 : S::kHeads};
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int h = static_cast<int>(threadIdx.x) / S::kDim + n * kStep;
      const float* from = q + min(h, heads - 1) * S::kDim;
      from = enters && h == S::kHeads ? rows.k + in : from;
      sources.head[n] = enters && h > S::kHeads ? rows.v + in : from;
      asm volatile("" : "+l"(sources.head[n]));
    }
    return sources;
  }

  // The queries, rotated, and the pair that enters, to shared memory. All that a thread reads is on
  // its way at a time.
  __device__ void take_query(const Sources& sources, const Turn& turn) const {
    const float scale = 1.0f / sqrtf(static_cast<float>(S::kDim));
    const int c = threadIdx.x % S::kDim, begin = threadIdx.x / S::kDim;
    float values[kEach], others[kEach];
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      values[n] = __ldcg(sources.head[n] + c);
      others[n] = __ldcg(sources.head[n] + turn.other);
    }
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int h = begin + n * kStep;
      const float turned = values[n] * turn.cosine + others[n] * turn.sine;
      if ((n + 1) * kStep <= S::kHeads || h < S::kHeads) {
        m.q[h * S::kDim + c] = turned;
        const __half2 halves = in_halves(turned * scale);
        auto* to = reinterpret_cast<__half*>(m.queries + 2 * h * S::kPairRow) + c;
        to[0] = halves.x;
        to[S::kPairRow / 2] = halves.y;
      } else if (h < sources.count) {
        const bool value = h > S::kHeads;
        *(reinterpret_cast<__half*>(entering(value)) + c) =
            __float2half_rn(value ? values[n] : turned);
      }
    }
  }

  // Where the newest key or value is in shared memory, in the block that has it.
  __device__ bool has_newest() const { return newest() >= first && newest() < first + pairs; }
  __device__ uint8_t* entering(bool value) const {
    return m.pairs + (value * own_pairs() + newest() - first) * S::kPairRow;
  }

  // It goes to the window; by a warp.
  __device__ void keep_newest() const {
    if (!has_newest() || unit > 0) return;
    const int64_t slot = ring_slot(view, piece.window_slot, newest());
    const int value = threadIdx.x % 32 / 16, at = threadIdx.x % 16 * 16;
    uint8_t* ring = ring_row(view, piece.memory, value ? view.ring_v : view.ring_k, kv_head, slot);
    if (at < S::kRow) {
      *reinterpret_cast<uint4*>(ring + at) = *reinterpret_cast<const uint4*>(entering(value) + at);
    }
  }

  // The outputs that the block joins, by a warp: each lane first has the numbers of a block, then
  // an output.
  __device__ void join(const AttentionOutput& output, bool linear, float gate,
                       const Barrier& joined) const {
    const int lane = threadIdx.x % 32, column = rank * kOutputs + lane;
    const int to = first_head * S::kDim + column;
    AttentionOutput::Place place = output.place(piece.row, to);
    // Found before the numbers are there: the compiler would do it after.
    asm volatile("" : "+l"(place.out), "+l"(place.half));
    joined.wait(0);
    const float2 own = lane < S::kBlocks ? m.exact_numbers[lane] : float2{-INFINITY, 0.0f};
    const float max = warp_max(own.x), factor = __expf(own.x - max);
    const float sum = warp_sum(factor * own.y);
    const float phi = warp_sum(lane < S::kLinearShares ? m.linear_numbers[lane] : 0.0f);
    float2 y = {0.0f, 0.0f};
#pragma unroll
    for (int block = 0; block < S::kBlocks; ++block) {
      y.x += __shfl_sync(~0u, factor, block) * m.exact[block * kOutputs + lane];
    }
    MixingWeights weights{1.0f, 0.0f};
    if (linear) {
#pragma unroll
      for (int share = 0; share < S::kLinearShares; ++share) {
        y.y += m.linear[share * kOutputs + lane];
      }
      weights = mixing_weights(view.mixing, view.affine, gate, max);
    }
    if (column / S::kDim >= heads) return;
    const float share = 1.0f / (weights.exact * sum + weights.linear * phi);
    const float value = share * (weights.exact * y.x + weights.linear * y.y);
    place.put(value);
    if (output.copy.rounded.q != nullptr) store_rounded(output.copy.rounded, to, value);
  }
};
#endif

}  // namespace lola

// What one block of a cluster does for a single query (lola_attend_cluster.cu).
#pragma once

#include "backend/cuda/cluster_memory.cuh"
#include "backend/cuda/query_share.cuh"
#include "backend/cuda/warp_sums.cuh"
#include "lola/mixing.h"

namespace lola {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// kBytes of the rows that row(i) gives on their way to shared memory, half a warp a row; those of
// null are left out.
template <int kBytes, typename Row>
__device__ inline void bring_rows(uint8_t* to, int count, const Row& row) {
#pragma unroll 1
  for (int i = threadIdx.x / 16; i < count; i += kClusterThreads / 16) {
    const uint8_t* from = row(i);
    if (from == nullptr) continue;
#pragma unroll
    for (int at = 0; at < kBytes; at += 256) {
      const int own = at + static_cast<int>(threadIdx.x) % 16 * 16;
      if (own < kBytes) copy_ahead(to + i * kBytes + own, from + own, true);
    }
  }
}

template <typename S>
struct ClusterBlock {
  const LolaView& view;
  const DevicePiece& piece;
  const ClusterMemory<S> m;
  const int rank, unit, units, kv_head, first_head, heads;
  const SeenPairs seen;
  int first, pairs;                 // of the exact pairs
  int map_first, map_rows, mapped;  // of the rows of a head's map, and for how many there is room

  __device__ ClusterBlock(const LolaView& layer, const DevicePiece& own, uint8_t* shared)
      : view(layer),
        piece(own),
        m(shared, layer),
        rank(blockIdx.x),
        unit(blockIdx.y),
        units((layer.group + S::kHeads - 1) / S::kHeads),
        kv_head(unit / units),
        first_head(kv_head * layer.group + (unit - kv_head * units) * S::kHeads),
        heads(min(S::kHeads, (kv_head + 1) * layer.group - first_head)),
        seen{layer, own, kv_head, layer.head_scope ? first_head : kv_head} {
    const int count = seen.count(), each = share_of<S::kBlocks>(count);
    first = rank * each;
    pairs = max(min(count - first, each), 0);
    const auto map_size = static_cast<int>(layer.map.map_size);
    mapped = share_of<S::kBlocks>(map_size);
    map_first = rank * mapped;
    map_rows = max(min(map_size - map_first, mapped), 0);
  }

  __device__ int newest() const { return seen.window() - 1; }
  // The first of the block's features of a set.
  __device__ int feature(int set) const {
    return map_first + (set % planes_of(view)) * static_cast<int>(view.map.map_size);
  }

  // All that does not depend on the query, but for the pair that enters with it.
  __device__ void bring(bool linear) const {
    const int own_pairs = share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
#pragma unroll 1
    for (int v = 0; v < 2; ++v) {
      const int64_t in_window = v == 0 ? view.ring_k : view.ring_v;
      const int64_t in_cache = v == 0 ? view.cache_k : view.cache_v;
      bring_rows<S::kRow>(m.pairs + v * own_pairs * S::kRow, pairs, [&](int i) {
        return first + i == newest() ? nullptr : seen.row(first + i, in_window, in_cache);
      });
    }
#pragma unroll 1
    for (int set = -1; set < sets_of(view) && linear; ++set) {
      const bool pending = set >= planes_of(view);
      const int64_t state = pending ? view.pending_state : view.state;
      const auto* from =
          set < 0 ? reinterpret_cast<const uint8_t*>(view.query_map) : piece.memory + state;
      const int stride = set < 0 ? static_cast<int>(view.map.map_size) : view.features;
      const int begin = set < 0 ? map_first : feature(set);
      const int place = mapped * S::kHeads;
      bring_rows<4 * S::kDim>(reinterpret_cast<uint8_t*>(m.rows + (1 + set) * place * S::kDim),
                              map_rows * S::kHeads, [&](int i) {
                                const int row =
                                    (first_head + min(i % S::kHeads, heads - 1)) * stride + begin +
                                    i / S::kHeads;
                                return from + static_cast<int64_t>(row) * (4 * S::kDim);
                              });
      if (set < 0) continue;
      const float* sums = floats_at(piece.memory, pending ? view.pending_sum : view.sum, 0);
#pragma unroll 1
      for (int i = threadIdx.x; i < map_rows * S::kHeads; i += kClusterThreads) {
        const int h = first_head + min(i % S::kHeads, heads - 1);
        copy_float_ahead(m.hidden_sums + set * place + i,
                         sums + static_cast<int64_t>(h) * stride + begin + i / S::kHeads, true);
      }
    }
    end_copies();
  }

  // The queries, rotated, and the pair that enters: it goes to the window too.
  __device__ void take_query(const AttentionRows& rows, const RopeRows& rope) const {
    const int own = newest() - first,
              own_pairs = share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
    const bool enters = own >= 0 && own < pairs;
    const float* q = rows.q + (int64_t{piece.row} * view.heads + first_head) * S::kDim;
    const int64_t in = (int64_t{piece.row} * view.kv_heads + kv_head) * S::kDim;
    const int count = enters ? (S::kHeads + 2) * S::kDim : S::kHeads * S::kDim;
#pragma unroll 3
    for (int i = threadIdx.x; i < count; i += kClusterThreads) {
      const int h = i / S::kDim, c = i % S::kDim;
      const float* from = h < S::kHeads    ? q + min(h, heads - 1) * S::kDim
                          : h == S::kHeads ? rows.k + in
                                           : rows.v + in;
      const float turned = rotated(rope, from, piece.row, c);
      if (h < S::kHeads) {
        m.q[i] = turned;
        continue;
      }
      const __half stored = __float2half_rn(h == S::kHeads ? turned : from[c]);
      const bool value = h > S::kHeads;
      reinterpret_cast<__half*>(m.pairs + (value * own_pairs + own) * S::kRow)[c] = stored;
      if (unit != kv_head * units) continue;
      const int64_t slot = ring_slot(view, piece.window_slot, newest());
      uint8_t* ring =
          ring_row(view, piece.memory, value ? view.ring_v : view.ring_k, kv_head, slot);
      reinterpret_cast<__half*>(ring)[c] = stored;
    }
  }

  // What activate() makes features of goes to all blocks.
  __device__ void map_query(Barrier& mapped_all) const {
    const int lane = threadIdx.x % 16, c = lane * 8;
#pragma unroll 1
    for (int i = threadIdx.x / 16; i - i % 2 < map_rows * S::kHeads; i += kClusterThreads / 16) {
      const int row = min(i, map_rows * S::kHeads - 1), h = row % S::kHeads;
      const int j = map_first + row / S::kHeads;
      float sum = 0.0f;
      if (c < S::kDim) {
        const Eight a = load_eight(m.rows + row * S::kDim + c);
        const Eight b = load_eight(m.q + h * S::kDim + c);
#pragma unroll
        for (int n = 0; n < 8; ++n) sum += a.v[n] * b.v[n];
      }
      sum = half_warp_sum(sum);
      if (view.map.skip) sum += m.q[h * S::kDim + j];
      if (lane < S::kBlocks && row == i) {
        send(m.phi + h * view.features + j, sum, mapped_all, lane);
      }
    }
  }

  __device__ void find_logits() const {
    const int lane = threadIdx.x % 16, c = lane * 8;
    const float scale = 1.0f / sqrtf(static_cast<float>(S::kDim));
#pragma unroll 1
    for (int i = threadIdx.x / 16; i - i % 2 < pairs; i += kClusterThreads / 16) {
      float sums[S::kHeads] = {};
      if (c < S::kDim) {
        const Eight key = load_eight<PairType::kF16>(m.pairs + min(i, pairs - 1) * S::kRow, c);
#pragma unroll
        for (int h = 0; h < S::kHeads; ++h) {
          const Eight own = load_eight(m.q + h * S::kDim + c);
#pragma unroll
          for (int n = 0; n < 8; ++n) sums[h] += own.v[n] * key.v[n];
        }
      }
      spread_sums<S::kHeads>(sums);
      if (lane < S::kHeads && i < pairs) m.weights[i * S::kHeads + lane] = sums[0] * scale;
    }
  }

  // Logits of head h become exponentials; by a warp.
  __device__ void weigh(int h) const {
    const int lane = threadIdx.x % 32;
    float max = -INFINITY, sum = 0.0f;
#pragma unroll 1
    for (int i = lane; i < pairs; i += 32) max = fmaxf(max, m.weights[i * S::kHeads + h]);
    max = warp_max(max);
#pragma unroll 1
    for (int i = lane; i < pairs; i += 32) {
      const float weight = expf(m.weights[i * S::kHeads + h] - max);
      m.weights[i * S::kHeads + h] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) m.own[h] = max, m.own[S::kHeads + h] = sum, m.own[2 * S::kHeads + h] = 0.0f;
  }

  // Head h's features, and phi's of the block's own; by a warp, after weigh().
  __device__ void find_features(int h) const {
    float* phi = m.phi + h * view.features;
    activate<32>(view.map, static_cast<int>(view.map.map_size),
                 [&](int j) -> float& { return phi[j]; });
    __syncwarp();
    float sum = 0.0f;
#pragma unroll 1
    for (int set = 0; set < sets_of(view); ++set) {
#pragma unroll 1
      for (int i = threadIdx.x % 32; i < map_rows; i += 32) {
        sum += phi[feature(set) + i] * m.hidden_sums[(set * mapped + i) * S::kHeads + h];
      }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) m.own[2 * S::kHeads + h] = sum;
  }

  // Sums of weighted values and of hidden states, two columns a thread.
  __device__ void add_rows(bool linear) const {
    const int part = threadIdx.x / (S::kDim / 2), c = threadIdx.x % (S::kDim / 2) * 2;
    const uint8_t* values =
        m.pairs + share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity) * S::kRow;
    float2 sums[S::kHeads] = {};
#pragma unroll 2
    for (int i = part; i < pairs; i += S::kParts) {
      const float2 value =
          __half22float2(*reinterpret_cast<const __half2*>(values + i * S::kRow + c * 2));
#pragma unroll
      for (int h = 0; h < S::kHeads; ++h) {
        const float weight = m.weights[i * S::kHeads + h];
        sums[h].x += weight * value.x;
        sums[h].y += weight * value.y;
      }
    }
#pragma unroll
    for (int h = 0; h < S::kHeads; ++h) {
      *reinterpret_cast<float2*>(m.exact + (part * S::kHeads + h) * S::kDim + c) = sums[h];
    }
    const int h = part % S::kHeads;
    float2 sum = {0.0f, 0.0f};
#pragma unroll 1
    for (int set = 0; set < sets_of(view) && linear; ++set) {
      const float* phi = m.phi + h * view.features + feature(set);
      const float* row = m.rows + ((1 + set) * mapped * S::kHeads + h) * S::kDim + c;
#pragma unroll 2
      for (int i = part / S::kHeads; i < map_rows; i += S::kParts / S::kHeads) {
        const float2 value = *reinterpret_cast<const float2*>(row + i * S::kHeads * S::kDim);
        sum.x += phi[i] * value.x;
        sum.y += phi[i] * value.y;
      }
    }
    *reinterpret_cast<float2*>(m.linear + part * S::kDim + c) = sum;
  }

  // The block's sums to those that join them, and its numbers to all.
  __device__ void leave(Barrier& joined) const {
#pragma unroll
    for (int o = threadIdx.x; o < S::kHeads * S::kDim; o += kClusterThreads) {
      float2 sum = {0.0f, 0.0f};
#pragma unroll
      for (int part = 0; part < S::kParts; ++part) {
        sum.x += m.exact[part * S::kHeads * S::kDim + o];
      }
#pragma unroll
      for (int part = 0; part < S::kParts / S::kHeads; ++part) {
        sum.y += m.linear[part * S::kHeads * S::kDim + o];
      }
      send(m.sums + rank * S::kOutputs + o % S::kOutputs, sum, joined, o / S::kOutputs);
    }
    constexpr int kEach = kClusterNumbers * S::kHeads;
    for (int i = threadIdx.x; i < S::kBlocks * kEach; i += kClusterThreads) {
      send(m.numbers + rank * kEach + i % kEach, m.own[i % kEach], joined, i / kEach);
    }
  }

  // The outputs that the block joins: a warp has some of one head, each lane first the numbers of a
  // block, then an output.
  __device__ void join(const AttentionOutput& output, bool linear, const float* gates) const {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int o = threadIdx.x; o < S::kOutputs; o += kClusterThreads) {
      const int column = rank * S::kOutputs + o, h = column / S::kDim;
      const float* own = m.numbers + min(lane, S::kBlocks - 1) * kClusterNumbers * S::kHeads + h;
      const bool there = lane < S::kBlocks;
      const float max = warp_max(own[0]);
      const float factor = there ? expf(own[0] - max) : 0.0f;
      const float sum = warp_sum(there ? factor * own[S::kHeads] : 0.0f);
      const float phi = warp_sum(there ? own[2 * S::kHeads] : 0.0f);
      float2 y = {0.0f, 0.0f};
#pragma unroll 4
      for (int block = 0; block < S::kBlocks; ++block) {
        const float2 part = m.sums[block * S::kOutputs + o];
        y.x += __shfl_sync(~0u, factor, block) * part.x;
        y.y += part.y;
      }
      if (h >= heads) continue;
      const MixingWeights weights = linear ? mixing_weights(view.mixing, view.affine, gates[h], max)
                                           : MixingWeights{1.0f, 0.0f};
      const float share = 1.0f / (weights.exact * sum + weights.linear * phi);
      output.put_rounded(piece.row, first_head * S::kDim + column,
                         share * (weights.exact * y.x + weights.linear * y.y));
    }
  }
};
#endif

}  // namespace lola

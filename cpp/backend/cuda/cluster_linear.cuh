// A query's linear term in a block of a cluster: a head's map, features and hidden states by the
// warps that have it.
#pragma once

#include "backend/cuda/cluster_block.cuh"

namespace lola {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Some neighbouring columns of a row.
template <int count>
struct __align__(4 * count) Columns {
  float v[count];
};

// What turns what a head's map gives into features.
struct Activation {
  FeatureMapKind kind;
  float most, least, factor, negative_factor;

  // z [f]; by a warp.
  __device__ Activation(const FeatureMap& map, const float* z)
      : kind(map.kind), most(-INFINITY), least(INFINITY), factor(1.0f), negative_factor(1.0f) {
    if (kind == FeatureMapKind::kRelu || kind == FeatureMapKind::kPosElu) return;
    // The first two of a lane stay in registers.
    const int f = static_cast<int>(map.map_size), lane = threadIdx.x % 32;
    const float own[2] = {z[min(lane, f - 1)], z[min(lane + 32, f - 1)]};
    most = fmaxf(own[0], own[1]), least = fminf(own[0], own[1]);
#pragma unroll 1
    for (int j = lane + 64; j < f; j += 32) most = fmaxf(most, z[j]), least = fminf(least, z[j]);
    most = warp_max(most), least = -warp_max(-least);
    if (kind != FeatureMapKind::kSoftmaxDim && kind != FeatureMapKind::kSoftmaxDimHalf) return;
    float sum = 0.0f, negative_sum = 0.0f;
    const auto add = [&](float x) { sum += __expf(x - most), negative_sum += __expf(least - x); };
    if (lane < f) add(own[0]);
    if (lane + 32 < f) add(own[1]);
#pragma unroll 1
    for (int j = lane + 64; j < f; j += 32) add(z[j]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(~0u, sum, offset);
      negative_sum += __shfl_xor_sync(~0u, negative_sum, offset);
    }
    factor = __fdividef(1.0f, sum);
    negative_factor = __fdividef(1.0f, negative_sum);
  }

  __device__ float feature(float z, bool negative) const {
    constexpr float kLeastFeature = 1e-12f;
    float x;
    if (kind == FeatureMapKind::kRelu) {
      x = z;
    } else if (kind == FeatureMapKind::kPosElu) {
      x = z > 0.0f ? 1.0f + z : __expf(z);
    } else {
      x = __expf(negative ? least - z : z - most) * (negative ? negative_factor : factor);
    }
    return fmaxf(x, kLeastFeature);
  }
};

// A warp's share of the block's rows: of one head, kRows at a time, in turn with its other warps.
template <typename S>
struct LinearShare {
  static constexpr int kRows = S::kRowsAtOnce, kColumns = S::kLaneColumns;
  static constexpr int kLanes = 32 / kRows;  // that get the sum of a row
  using Lane = Columns<kColumns>;

  const ClusterBlock<S>& block;
  int head, part, lane;

  __device__ LinearShare(const ClusterBlock<S>& own, int warp)
      : block(own),
        head(warp % S::kHeads),
        part(warp / S::kHeads),
        lane(static_cast<int>(threadIdx.x) % 32) {}

  // The lane's columns of row i of a set: -1 for the map's. There is room for those after the last,
  // up to a multiple of kRows, but nothing in it.
  __device__ const Lane& row(int set, int i) const {
    const int at = ((1 + set) * block.room + i) * S::kHeads + head;
    return *reinterpret_cast<const Lane*>(block.m.rows + at * S::kDim + lane * kColumns);
  }

  // What activations make features of goes to all blocks.
  __device__ void map_query(Barrier& mapped) const {
    const float* query = block.m.q + head * S::kDim;
    const auto q = *reinterpret_cast<const Lane*>(query + lane * kColumns);
#pragma unroll 1
    for (int i = part * kRows; i < block.map_rows; i += S::kLinearParts * kRows) {
      float sums[kRows] = {};
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        const Lane& x = row(-1, i + n);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sums[n] += q.v[c] * x.v[c];
      }
      spread_over_warp<kRows>(sums);
      const int own = i + lane / kLanes, j = block.map_first + own;
      if (own >= block.map_rows) continue;
      if (block.view.map.skip) sums[0] += query[j];
#pragma unroll
      for (int to = lane % kLanes; to < S::kBlocks; to += kLanes) {
        send(block.m.mapped + head * block.view.map.map_size + j, sums[0], mapped, to);
      }
    }
  }

  __device__ void answer(Barrier& joined) const {
    const float* z = block.m.mapped + head * block.view.map.map_size;
    const Activation activation(block.view.map, z);
    const int planes = planes_of(block.view), sets = sets_of(block.view);
    Lane out{};
    float sum = 0.0f;
#pragma unroll 1
    for (int i = part * kRows; i < block.map_rows; i += S::kLinearParts * kRows) {
      const int set = lane / kRows, own = i + lane % kRows;
      float phi = 0.0f;
      if (set < sets && own < block.map_rows) {
        phi = activation.feature(z[block.map_first + own], (set & (planes - 1)) > 0);
        sum += phi * block.m.hidden_sums[(set * block.room + own) * S::kHeads + head];
      }
#pragma unroll 1
      for (int of = 0; of < sets; ++of) {
#pragma unroll
        for (int n = 0; n < kRows; ++n) {
          const float weight = __shfl_sync(~0u, phi, of * kRows + n);
          if (i + n >= block.map_rows) continue;
          const Lane& x = row(of, i + n);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) out.v[c] += weight * x.v[c];
        }
      }
    }
    sum = warp_sum(sum);
    leave(out, sum, joined);
  }

  // To those that join the head's outputs.
  __device__ void leave(const Lane& out, float sum, Barrier& joined) const {
    const int o = head * S::kDim + lane * kColumns, share = block.rank * S::kLinearParts + part;
    float* to = block.m.linear + share * kOutputs + o % kOutputs;
    if constexpr (kColumns == 4) {
      send(reinterpret_cast<float4*>(to), float4{out.v[0], out.v[1], out.v[2], out.v[3]}, joined,
           o / kOutputs);
    } else {
      send(reinterpret_cast<float2*>(to), float2{out.v[0], out.v[1]}, joined, o / kOutputs);
    }
    if (lane < S::kDim / kOutputs) {
      send(block.m.linear_numbers + share, sum, joined, head * (S::kDim / kOutputs) + lane);
    }
  }
};

template <typename S>
__device__ inline void answer_linear(const ClusterBlock<S>& block, int warp, bool linear,
                                     Barrier& mapped, Barrier& joined) {
  const LinearShare<S> share(block, warp);
  if (!linear) return share.leave({}, 0.0f, joined);
  share.map_query(mapped);
  mapped.wait(0);
  share.answer(joined);
}
#endif

}  // namespace lola

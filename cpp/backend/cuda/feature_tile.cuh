// phi(x) of 16 rows, and their products with a hidden state.
#pragma once

#include "backend/cuda/row_tile.cuh"
#include "lola/feature_map.h"

namespace lola {

// Turns z [f] of a row, at(j), into its features; `lanes` lanes of a warp share the row.
template <int lanes, typename At>
__device__ inline void activate(const FeatureMap& map, int f, const At& at) {
  constexpr float kLeastFeature = 1e-12f;
  const int first = threadIdx.x % lanes;
  const auto floored = [](float x) { return fmaxf(x, kLeastFeature); };
  if (map.kind == FeatureMapKind::kRelu || map.kind == FeatureMapKind::kPosElu) {
    for (int j = first; j < f; j += lanes) {
      const float z = at(j);
      const bool elu = map.kind == FeatureMapKind::kPosElu;
      at(j) = floored(!elu ? z : z > 0.0f ? 1.0f + z : expf(z));
    }
    return;
  }
  float most = -INFINITY, least = INFINITY;
  for (int j = first; j < f; j += lanes) most = fmaxf(most, at(j)), least = fminf(least, at(j));
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
    least = fminf(least, __shfl_xor_sync(~0u, least, offset));
  }
  const bool full = map.kind == FeatureMapKind::kSoftmaxDim || map.kind == FeatureMapKind::kExpDim;
  float sum = 0.0f, negative_sum = 0.0f;
  for (int j = first; j < f; j += lanes) {
    const float z = at(j);
    at(j) = expf(z - most);
    sum += at(j);
    if (!full) continue;
    at(f + j) = expf(least - z);
    negative_sum += at(f + j);
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(~0u, sum, offset);
    negative_sum += __shfl_xor_sync(~0u, negative_sum, offset);
  }
  const bool divided =
      map.kind == FeatureMapKind::kSoftmaxDim || map.kind == FeatureMapKind::kSoftmaxDimHalf;
  const float factor = divided ? 1.0f / sum : 1.0f;
  const float negative_factor = divided ? 1.0f / negative_sum : 1.0f;
  for (int j = first; j < f; j += lanes) {
    at(j) = floored(at(j) * factor);
    if (full) at(f + j) = floored(at(f + j) * negative_factor);
  }
}

// weights [features, rows] = phi of m.rows, under one head's W [map_size, head_dim].
__device__ inline void map_rows(const TileMemory& m, const LanePart& part, const FeatureMap& map,
                                const float* w, int head_dim) {
  const int f = static_cast<int>(map.map_size);
  __syncthreads();
  for (int begin = 0; begin < f; begin += kTileVectors) {
    const int count = min(kTileVectors, f - begin);
    float z[2][8];
    tile_product<false>(
        m, part, head_dim, count,
        [&](int v) {
          return [from = w + static_cast<int64_t>(begin + v) * head_dim](int c) {
            return four_at(from + c);
          };
        },
        z);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int row = part.row + i / 8 * 8, j = part.vector(i % 8);
      if (j >= count) continue;
      const float skipped = map.skip ? m.rows[row * m.stride + begin + j] : 0.0f;
      m.weights[(begin + j) * kWeightStride + row] = z[i / 8][i % 8] + skipped;
    }
  }
  __syncthreads();
  const int row = threadIdx.x / 8;
  activate<8>(map, f, [&](int j) -> float& { return m.weights[j * kWeightStride + row]; });
  __syncthreads();
}

// A query head's hidden state; pending parts are null where there are none.
struct HiddenRows {
  const float* state;  // [features, head_dim]
  const float* sum;    // [features]
  const float* pending_state;
  const float* pending_sum;
};

// y += phi'Hs and sum = phi's of a lane's rows; phi as map_rows() leaves it.
__device__ inline void read_hidden(const TileMemory& m, const LanePart& part,
                                   const HiddenRows& hidden, int features, int head_dim, RowSums& y,
                                   float sum[2]) {
  const auto read = [&](const float* state) {
    add_weighted<false>(
        m, part, head_dim, features,
        [&](int v, int c) { return four_at(state + static_cast<int64_t>(v) * head_dim + c); }, y);
  };
  read(hidden.state);
  if (hidden.pending_state != nullptr) read(hidden.pending_state);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = 0.0f;
    for (int j = part.quarter; j < features; j += 4) {
      float s = hidden.sum[j];
      if (hidden.pending_sum != nullptr) s += hidden.pending_sum[j];
      sum[i] += m.weights[j * kWeightStride + part.row + 8 * i] * s;
    }
    for (int offset = 2; offset > 0; offset /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], offset);
  }
}

}  // namespace lola

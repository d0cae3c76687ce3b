// phi(x) of rows, and where a hidden state lies.
#pragma once

#include "backend/cuda/row_tile.cuh"
#include "lola/feature_map.h"

namespace lola {

// Floats of a row of features in scratch memory.
__host__ __device__ constexpr int feature_stride(int features) { return (features + 3) / 4 * 4; }

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

// A query head's hidden state; pending parts are null where there are none.
struct HiddenRows {
  const float* state;  // [features, head_dim]
  const float* sum;    // [features]
  const float* pending_state;
  const float* pending_sum;
};

}  // namespace lola

// phi(x): the learned feature maps of linear attention, phi(x) = max(1e-12, activation(W'x)), and
// with a skip connection activation(x + W'x). As LoLCATs defines them
// (github.com/HazyResearch/lolcats, src/model/feature_map.py: FeatureMapMLP and the activations).
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/kernels.h"

namespace lola {

enum class FeatureMapKind { kSoftmaxDim, kSoftmaxDimHalf, kExpDim, kExpDimHalf, kRelu, kPosElu };

struct FeatureMap {
  FeatureMapKind kind = FeatureMapKind::kSoftmaxDim;
  int64_t map_size = 0;  // f, the columns of W
  bool skip = false;     // skip connection; f = head_dim then
};

// F, the size of phi(x): 2 f for the maps of the full space, f for the others.
int64_t feature_size(const FeatureMap& map);

// The names that adapters use; UsageError, listing them, when there is no such kind.
FeatureMapKind find_feature_map(std::string_view name);
const char* name_of(FeatureMapKind kind);

// phi [count, feature_size] of x [count, head_dim] (row stride x_stride) under one head's W, weight
// [map_size, head_dim].
void map_features(const Kernels& kernels, const FeatureMap& map, const float* weight,
                  const float* x, int64_t x_stride, int64_t count, int64_t head_dim, float* phi);

}  // namespace lola

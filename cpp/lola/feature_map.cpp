#include "lola/feature_map.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/text.h"

namespace lola {
namespace {

constexpr float kLeastFeature = 1e-12f;

// Each activation turns z [f], at the front of a row, into the row's features in place.

void softmax(const Kernels& kernels, float* row, int64_t f) {
  kernels.exp_features(row, f, false, true, kLeastFeature);
}

void softmax_full(const Kernels& kernels, float* row, int64_t f) {
  kernels.exp_features(row, f, true, true, kLeastFeature);
}

void exp_half(const Kernels& kernels, float* row, int64_t f) {
  kernels.exp_features(row, f, false, false, kLeastFeature);
}

void exp_full(const Kernels& kernels, float* row, int64_t f) {
  kernels.exp_features(row, f, true, false, kLeastFeature);
}

void relu(const Kernels&, float* row, int64_t f) {
  for (int64_t i = 0; i < f; ++i) row[i] = std::max(row[i], kLeastFeature);
}

void pos_elu(const Kernels&, float* row, int64_t f) {
  for (int64_t i = 0; i < f; ++i) {
    row[i] = std::max(row[i] > 0.0f ? 1.0f + row[i] : std::exp(row[i]), kLeastFeature);
  }
}

struct FeatureMapRow {
  const char* name;
  int64_t halves;  // F / f
  void (*activate)(const Kernels& kernels, float* row, int64_t f);
};

// In the order of the enumerators.
constexpr FeatureMapRow kFeatureMaps[] = {
    {"softmax_dim", 2, softmax_full},
    {"softmax_dim_half", 1, softmax},
    {"exp_dim", 2, exp_full},
    {"exp_dim_half", 1, exp_half},
    {"relu", 1, relu},
    {"pos_elu", 1, pos_elu},
};

const FeatureMapRow& row_of(FeatureMapKind kind) { return kFeatureMaps[static_cast<int>(kind)]; }

}  // namespace

int64_t feature_size(const FeatureMap& map) { return row_of(map.kind).halves * map.map_size; }

const char* name_of(FeatureMapKind kind) { return row_of(kind).name; }

FeatureMapKind find_feature_map(std::string_view name) {
  std::string wanted;
  int kind = 0;
  for (const FeatureMapRow& row : kFeatureMaps) {
    if (name == row.name) return static_cast<FeatureMapKind>(kind);
    wanted += (kind++ == 0 ? "" : ", ") + std::string(row.name);
  }
  throw UsageError(message("feature map: found ", quote(name), ", wanted one of ", wanted));
}

void map_features(const Kernels& kernels, const FeatureMap& map, const float* weight,
                  const float* x, int64_t x_stride, int64_t count, int64_t head_dim, float* phi) {
  const int64_t size = feature_size(map);
  const FeatureMapRow& row = row_of(map.kind);
  kernels.gemm_nt(count, map.map_size, head_dim, x, x_stride, weight, head_dim, phi, size);
  for (int64_t i = 0; i < count; ++i) {
    float* z = phi + i * size;
    if (map.skip) kernels.add(z, x + i * x_stride, map.map_size);
    row.activate(kernels, z, map.map_size);
  }
}

}  // namespace lola

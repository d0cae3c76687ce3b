// phi'Hs and phi's of a tile of rows.
#pragma once

#include "backend/cuda/lola_view.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {

constexpr int kStageFeatures = 32;
constexpr int kPhiStride = kStageFeatures + 8;  // floats, of a row in shared memory

// Floats of one stage of shared memory: features [kRows, kPhiStride], then rows of Hs
// [kStageFeatures, stride] and of s [kStageFeatures].
template <int kDim>
__host__ __device__ constexpr int stage_floats(int head_dim) {
  return RowTile<kDim>::kRows * kPhiStride +
         kStageFeatures * (weighted_stride<float>(head_dim) + 1);
}

// Which rows and columns a warp answers where kColumnWarps share the rows of one.
template <int kDim, int kColumnWarps>
struct WarpPart {
  static constexpr int kGroups = RowTile<kDim>::kGroups / kColumnWarps;
  static constexpr int kThreads = RowTile<kDim>::kThreads * kColumnWarps;
  int row, column;  // the first

  __device__ WarpPart()
      : row(static_cast<int>(threadIdx.x) / 32 % RowTile<kDim>::kWarps * kWarpRows),
        column(static_cast<int>(threadIdx.x) / 32 / RowTile<kDim>::kWarps * kGroups *
               kGroupColumns) {}
};

// A hidden state, and the features of rows, on their way through kStages stages of shared memory:
// first the sums that are flushed, then those that are pending.
template <int kDim, int kStages, int kThreads>
struct HiddenStages {
  static constexpr int kRows = RowTile<kDim>::kRows;
  float* shared;
  const HiddenRows& hidden;
  int features, head_dim, stride, half, steps;

  __device__ HiddenStages(float* stages, const HiddenRows& rows, int feature_count, int d)
      : shared(stages),
        hidden(rows),
        features(feature_count),
        head_dim(d),
        stride(weighted_stride<float>(d)),
        half((feature_count + kStageFeatures - 1) / kStageFeatures),
        steps(rows.pending_state == nullptr ? half : 2 * half) {}

  __device__ float* phi(int step) const {
    return shared + step % kStages * stage_floats<kDim>(head_dim);
  }
  __device__ float* state(int step) const { return phi(step) + kRows * kPhiStride; }
  __device__ float* sum(int step) const { return state(step) + kStageFeatures * stride; }

  __device__ void load_state(int step) const {
    if (step >= steps) return;
    const bool pending = step >= half;
    const int begin = (pending ? step - half : step) * kStageFeatures;
    const float* from = pending ? hidden.pending_state : hidden.state;
    const int j = begin + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kStageFeatures) {
      copy_float_ahead(sum(step) + threadIdx.x,
                       (pending ? hidden.pending_sum : hidden.sum) + min(j, features - 1),
                       j < features);
    }
    stage_rows<PairType::kF32, kThreads, kStageFeatures, kDim>(
        state(step), stride, head_dim, head_dim, min(kStageFeatures, features - begin),
        [&](int i) { return reinterpret_cast<const uint8_t*>(from + (begin + i) * head_dim); });
  }

  // The last part of a step.
  template <typename Phi>
  __device__ void load_phi(int step, int count, const Phi& phi_of) const {
    if (step < steps) {
      const int begin = (step < half ? step : step - half) * kStageFeatures;
      stage_rows<PairType::kF32, kThreads, kRows, kStageFeatures>(
          phi(step), kPhiStride, kStageFeatures, feature_stride(features) - begin, count,
          [&](int r) { return reinterpret_cast<const uint8_t*>(phi_of(r) + begin); });
    }
    end_copies();
  }
};

// y = phi'Hs and sum = phi's of a lane's rows, by a block. phi_of(r): where the features of row r
// of the first `count` are, of feature_stride() floats. Past head_dim y holds nothing of use.
// meanwhile(): called while the first stages are on their way.
template <int kDim, int kStages, int kColumnWarps, typename Phi, typename Meanwhile>
__device__ inline void read_hidden(float* shared, const Lane& lane,
                                   const WarpPart<kDim, kColumnWarps>& part,
                                   const HiddenRows& hidden, int features, int head_dim, int count,
                                   const Phi& phi_of, const Meanwhile& meanwhile,
                                   RowSums<WarpPart<kDim, kColumnWarps>::kGroups>& y,
                                   float sum[2]) {
  const HiddenStages<kDim, kStages, part.kThreads> stages(shared, hidden, features, head_dim);
  sum[0] = sum[1] = 0.0f;
#pragma unroll
  for (int step = 0; step + 1 < kStages; ++step) {
    stages.load_state(step);
    stages.load_phi(step, count, phi_of);
  }
  meanwhile();
#pragma unroll 1
  for (int step = 0; step < stages.steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    stages.load_state(step + kStages - 1);
    stages.load_phi(step + kStages - 1, count, phi_of);
    if (part.row >= count || part.column >= head_dim) continue;
    const float* own = stages.phi(step) + (part.row + lane.row) * kPhiStride + lane.quarter * 2;
    const float* s = stages.sum(step) + lane.quarter * 2;
#pragma unroll 2
    for (int j = 0; j < kStageFeatures; j += 8) {
      const float2 a = *reinterpret_cast<const float2*>(own + j);
      const float2 b = *reinterpret_cast<const float2*>(own + 8 * kPhiStride + j);
      add_weighted<part.kGroups, false>(lane, split_rows(a.x, b.x, a.y, b.y),
                                        stages.state(step) + j * stages.stride, stages.stride,
                                        part.column, head_dim, y);
      sum[0] += a.x * s[j] + a.y * s[j + 1];
      sum[1] += b.x * s[j] + b.y * s[j + 1];
    }
  }
  over_row(sum, [](float a, float b) { return a + b; });
}

}  // namespace lola

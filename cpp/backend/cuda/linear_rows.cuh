// phi'Hs and phi's of a tile of rows.
#pragma once

#include "backend/cuda/lola_view.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {

constexpr int kStageFeatures = 32;
constexpr int kPhiStride = kStageFeatures + 8;  // floats, of a row in shared memory

// One stage of shared memory: features [kRows, kPhiStride], then rows of Hs [kStageFeatures,
// stride] and of s [kStageFeatures].
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

// y = phi'Hs and sum = phi's of a lane's rows, by a block. phi(r): where the features of row r of
// the first `count` are, of feature_stride() floats. shared: kStages stages.
template <int kDim, int kStages, int kColumnWarps, typename Phi>
__device__ inline void read_hidden(float* shared, const Lane& lane,
                                   const WarpPart<kDim, kColumnWarps>& part,
                                   const HiddenRows& hidden, int features, int head_dim, int count,
                                   const Phi& phi,
                                   RowSums<WarpPart<kDim, kColumnWarps>::kGroups>& y,
                                   float sum[2]) {
  constexpr int kRows = RowTile<kDim>::kRows;
  const int stride = weighted_stride<float>(head_dim);
  const int steps = (features + kStageFeatures - 1) / kStageFeatures;
  const int all_steps = hidden.pending_state == nullptr ? steps : 2 * steps;
  const auto stage_of = [&](int step) {
    return shared + step % kStages * stage_floats<kDim>(head_dim);
  };
  const auto stage = [&](int step) {
    if (step < all_steps) {
      const int begin = (step < steps ? step : step - steps) * kStageFeatures;
      const float* state = step < steps ? hidden.state : hidden.pending_state;
      const float* s = step < steps ? hidden.sum : hidden.pending_sum;
      float* to = stage_of(step);
      if (threadIdx.x < kStageFeatures) {
        const int j = begin + static_cast<int>(threadIdx.x);
        copy_float_ahead(to + stage_floats<kDim>(head_dim) - kStageFeatures + threadIdx.x,
                         s + min(j, features - 1), j < features);
      }
      stage_rows<PairType::kF32, part.kThreads, kStageFeatures, kDim>(
          to + kRows * kPhiStride, stride, head_dim, head_dim,
          min(kStageFeatures, features - begin),
          [&](int j) { return reinterpret_cast<const uint8_t*>(state + (begin + j) * head_dim); });
      stage_rows<PairType::kF32, part.kThreads, kRows, kStageFeatures>(
          to, kPhiStride, kStageFeatures, feature_stride(features) - begin, count,
          [&](int r) { return reinterpret_cast<const uint8_t*>(phi(r) + begin); });
    }
    end_copies();
  };
  sum[0] = sum[1] = 0.0f;
#pragma unroll
  for (int step = 0; step + 1 < kStages; ++step) stage(step);
#pragma unroll 1
  for (int step = 0; step < all_steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    stage(step + kStages - 1);
    if (part.row >= count || part.column >= head_dim) continue;
    const float *own = stage_of(step) + (part.row + lane.row) * kPhiStride + lane.quarter * 2,
                *state = stage_of(step) + kRows * kPhiStride,
                *s = state + kStageFeatures * stride + lane.quarter * 2;
#pragma unroll 2
    for (int j = 0; j < kStageFeatures; j += 8) {
      const float2 a = *reinterpret_cast<const float2*>(own + j);
      const float2 b = *reinterpret_cast<const float2*>(own + 8 * kPhiStride + j);
      add_weighted<part.kGroups, false>(lane, split_rows(a.x, b.x, a.y, b.y), state + j * stride,
                                        stride, part.column, head_dim, y);
      sum[0] += a.x * s[j] + a.y * s[j + 1];
      sum[1] += b.x * s[j] + b.y * s[j + 1];
    }
  }
  over_row(sum, [](float a, float b) { return a + b; });
}

}  // namespace lola

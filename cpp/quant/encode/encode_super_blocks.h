// Encoding of the K formats: 256 weights in groups, each group's scale (and min) an integer times
// the block's d (and dmin).
//
// Each group is fitted with real numbers first. Then d and dmin are chosen for those, and in turn
// the integers of each group and d and dmin are fitted to the weights themselves, as long as the
// error falls.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/half.h"
#include "quant/encode/fit.h"

namespace lola {

inline constexpr int kRefinements = 2;

// The d whose multiples are nearest to the scales of the groups, each times its importance. Where
// scales have a sign, the largest may stand at either end of the integers.
template <int kGroups, int kMinS, int kMaxS>
static float fit_multiples(const float* scales, const float* importance) {
  constexpr int kSteps = 16;
  const float* largest = std::max_element(
      scales, scales + kGroups, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  if (std::fabs(*largest) < kSmallestScale) return 0.0f;
  float best_d = 0.0f;
  float best_error = HUGE_VALF;
  for (const int limit : {kMinS, kMaxS}) {
    for (int step = 0; step < kSteps && limit != 0; ++step) {
      const float d =
          *largest / (static_cast<float>(limit) * (1.0f - 0.02f * static_cast<float>(step)));
      float error = 0.0f;
      for (int g = 0; g < kGroups; ++g) {
        const float rest =
            scales[g] - d * static_cast<float>(nearest_integer<kMinS, kMaxS>(scales[g] / d));
        error += importance[g] * rest * rest;
      }
      if (error < best_error) {
        best_error = error;
        best_d = d;
      }
    }
  }
  return best_d;
}

// A K block while it is fitted; Block says how its numbers are bounded.
template <typename Block>
class SuperBlock {
 public:
  static constexpr int kGroups = Block::kWeights / Block::kGroup;
  static constexpr int kMinQ = [] {
    if constexpr (Block::kHasMin)
      return 0;
    else
      return Block::kMinQ;
  }();
  static constexpr int kMinS = [] {
    if constexpr (Block::kHasMin)
      return 0;
    else
      return Block::kMinScale;
  }();
  static constexpr int kMaxS = Block::kMaxScale;
  static constexpr int kMaxM = Block::kHasMin ? Block::kMaxScale : 0;

  SuperBlock(const float* x, const float* w) : x_(x), w_(w) {}

  void encode(Block* block) {
    start();
    double error = fit_integers();
    for (int round = 0; round < kRefinements; ++round) {
      const SuperBlock before = *this;
      refit();
      const double now = fit_integers();
      if (!(now < error)) {
        *this = before;
        break;
      }
      error = now;
    }
    write(block);
  }

 private:
  float d() const { return f16_to_f32(d_); }
  float dmin() const { return f16_to_f32(dmin_); }
  const float* x(int group) const { return x_ + group * Block::kGroup; }
  const float* w(int group) const { return w_ + group * Block::kGroup; }

  ScaleMin at(int s, int m) const {
    return {d() * static_cast<float>(s), dmin() * static_cast<float>(m)};
  }

  // Real scales and mins of the groups, and the d and dmin nearest to them.
  void start() {
    float scales[kGroups];
    float mins[kGroups];
    float scale_importance[kGroups];
    float min_importance[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      Fit fit;
      if constexpr (Block::kHasMin) {
        fit = fit_scale_min<Block::kGroup, Block::kMaxQ, true>(x(g), w(g));
      } else {
        fit = fit_scale<Block::kGroup, kMinQ, Block::kMaxQ>(x(g), w(g));
      }
      scales[g] = fit.at.scale;
      mins[g] = fit.at.min;
      scale_importance[g] = fit.sums.qq;
      run_[g] = sum_run<Block::kGroup>(x(g), w(g));
      min_importance[g] = run_[g].one;
    }
    set_d(fit_multiples<kGroups, kMinS, kMaxS>(scales, scale_importance));
    if constexpr (Block::kHasMin) {
      set_dmin(fit_multiples<kGroups, 0, kMaxS>(mins, min_importance));
    }
    for (int g = 0; g < kGroups; ++g) {
      s_[g] = nearest_integer<kMinS, kMaxS>(scales[g] * inverse_scale(d()));
      m_[g] = nearest_integer<0, kMaxM>(mins[g] * inverse_scale(dmin()));
    }
  }

  void set_d(float d) { d_ = f32_to_f16(d); }
  void set_dmin(float dmin) { dmin_ = f32_to_f16(std::max(0.0f, dmin)); }

  // Moves the integers of each group to neighbours that are better. Returns the block's error.
  double fit_integers() {
    double total = 0.0;
    for (int g = 0; g < kGroups; ++g) {
      double least = HUGE_VAL;
      try_integers(g, s_[g], m_[g], &least);
      const int s = s_[g];
      for (const int beside : {s - 1, s + 1}) try_integers(g, beside, m_[g], &least);
      const int m = m_[g];
      for (const int beside : {m - 1, m + 1}) try_integers(g, s_[g], beside, &least);
      total += least;
    }
    return total;
  }

  void try_integers(int group, int s, int m, double* least) {
    if (s < kMinS || s > kMaxS || m < 0 || m > kMaxM) return;
    const CodeSums sums =
        sum_codes<Block::kGroup, kMinQ, Block::kMaxQ>(x(group), w(group), at(s, m));
    const double error = squared_error(run_[group], sums, at(s, m));
    if (!(error < *least)) return;
    *least = error;
    sums_[group] = sums;
    s_[group] = s;
    m_[group] = m;
  }

  // The least-squares d and dmin for the integers and codes as they are: the minimum over both of
  // the sum of w (d s q - dmin m - x)^2.
  void refit() {
    double ss = 0.0, sm = 0.0, mm = 0.0, sx = 0.0, mx = 0.0;
    for (int g = 0; g < kGroups; ++g) {
      const double s = s_[g];
      const double m = m_[g];
      ss += s * s * sums_[g].qq;
      sm += s * m * sums_[g].q;
      mm += m * m * run_[g].one;
      sx += s * sums_[g].qx;
      mx += m * run_[g].x;
    }
    const double determinant = ss * mm - sm * sm;
    if (determinant > 0.0 && sm * sx - ss * mx > 0.0) {
      set_d(static_cast<float>((mm * sx - sm * mx) / determinant));
      set_dmin(static_cast<float>((sm * sx - ss * mx) / determinant));
    } else if (ss > 0.0) {
      set_d(static_cast<float>(sx / ss));
      set_dmin(0.0f);
    }
  }

  void write(Block* block) const {
    int8_t q[Block::kWeights];
    for (int g = 0; g < kGroups; ++g) {
      write_codes<Block::kGroup, kMinQ, Block::kMaxQ>(x(g), at(s_[g], m_[g]),
                                                      q + g * Block::kGroup);
    }
    if constexpr (Block::kHasMin) {
      pack(q, s_, m_, d_, dmin_, block);
    } else {
      pack(q, s_, d_, block);
    }
  }

  const float* x_;
  const float* w_;
  uint16_t d_ = 0;
  uint16_t dmin_ = 0;
  int s_[kGroups] = {};
  int m_[kGroups] = {};
  RunSums run_[kGroups];
  CodeSums sums_[kGroups];
};

template <typename Block>
static void encode_super_block(const float* x, const float* w, Block* block) {
  SuperBlock<Block>(x, w).encode(block);
}

}  // namespace lola

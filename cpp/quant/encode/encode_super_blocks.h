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
// scales have a sign, the largest may stand at either end of the integers. Tiny scales want a large
// d and small integers: float16 ends at 2^-24.
template <int kGroups, int kMinS, int kMaxS>
static uint16_t fit_multiples(const float* scales, const float* importance) {
  constexpr int kSteps = 16;
  constexpr int kHalvings = 7;
  const float largest = *std::max_element(
      scales, scales + kGroups, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  uint16_t best = 0;
  float best_error = HUGE_VALF;
  const auto try_largest_as = [&](float integer) {
    const uint16_t candidate = f32_to_f16(largest / integer);
    const float d = f16_to_f32(candidate);
    const float inverse = inverse_scale(d);
    float error = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      const int multiple = nearest_integer<kMinS, kMaxS>(scales[g] * inverse);
      const float rest = scales[g] - d * static_cast<float>(multiple);
      error += importance[g] * rest * rest;
    }
    if (!(error < best_error)) return;
    best_error = error;
    best = candidate;
  };
  for (const float limit : {static_cast<float>(kMaxS), static_cast<float>(kMinS)}) {
    if (limit == 0.0f) continue;
    for (int i = 0; i < kSteps; ++i) try_largest_as(limit * (1.0f - 0.02f * static_cast<float>(i)));
    for (int i = 1; i < kHalvings; ++i) try_largest_as(std::ldexp(limit, -i));
  }
  return best;
}

// A K block while it is fitted; Block says how its numbers are bounded.
template <typename Block>
class SuperBlock {
 public:
  static constexpr int kGroups = Block::kWeights / Block::kGroup;
  static constexpr int kMinQ = Block::kMinQ;
  static constexpr int kMinS = Block::kMinScale;
  static constexpr int kMaxS = Block::kMaxScale;
  static constexpr int kMaxM = Block::kHasMin ? Block::kMaxScale : 0;

  SuperBlock(const float* x, const float* w) : x_(x), w_(w) {}

  void encode(Block* block) {
    start();
    SuperBlock best = *this;
    best.descend();
    if constexpr (kMaxS < 32) {
      // So few integers that their groups depend on each other: other places to start from.
      for (const float factor : {0.95f, 1.05f}) {
        SuperBlock other = *this;
        other.set_d(d() * factor);
        other.descend();
        if (other.error_ < best.error_) best = other;
      }
    }
    best.write(block);
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
    d_ = fit_multiples<kGroups, kMinS, kMaxS>(scales, scale_importance);
    if constexpr (Block::kHasMin) {
      dmin_ = fit_multiples<kGroups, 0, kMaxS>(mins, min_importance);
    }
    for (int g = 0; g < kGroups; ++g) {
      s_[g] = nearest_integer<kMinS, kMaxS>(scales[g] * inverse_scale(d()));
      m_[g] = nearest_integer<0, kMaxM>(mins[g] * inverse_scale(dmin()));
    }
  }

  // Fits integers and d, dmin in turn.
  void descend() {
    fit_integers();
    for (int round = 0; round < kRefinements; ++round) {
      const SuperBlock before = *this;
      refit();
      fit_integers();
      if (error_ < before.error_) continue;
      *this = before;
      return;
    }
  }

  void set_d(float d) { d_ = f32_to_f16(d); }
  void set_dmin(float dmin) { dmin_ = f32_to_f16(std::max(0.0f, dmin)); }

  // Moves the integers of each group to neighbours that are better.
  void fit_integers() {
    error_ = 0.0;
    for (int g = 0; g < kGroups; ++g) {
      double least = HUGE_VAL;
      try_integers(g, s_[g], m_[g], &least);
      const int s = s_[g];
      for (const int beside : {s - 1, s + 1, -s}) try_integers(g, beside, m_[g], &least);
      const int m = m_[g];
      for (const int beside : {m - 1, m + 1}) try_integers(g, s_[g], beside, &least);
      error_ += least;
    }
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
  double error_ = 0.0;
  RunSums run_[kGroups];
  CodeSums sums_[kGroups];
};

template <typename Block>
static void encode_super_block(const float* x, const float* w, Block* block) {
  SuperBlock<Block>(x, w).encode(block);
}

}  // namespace lola

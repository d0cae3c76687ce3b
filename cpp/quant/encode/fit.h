// The scale, and where the format has one the min, with the least squared error for a run of
// weights.
//
// The error is full of local minima, one for each way to round the weights. So a search tries
// scales around the one that just covers the run, and improves each: the least-squares scale of the
// codes it rounds to, then the codes of that scale, which can only lower the error.
#pragma once

#include <algorithm>
#include <cmath>

#include "quant/encode/rounding.h"

namespace lola {

struct Fit {
  ScaleMin at;
  CodeSums sums;  // with the codes of `at`
};

// How many scales a search tries, and how far apart: the fewer codes, the more the choice matters.
template <int kMinQ, int kMaxQ>
struct SearchGrid {
  static constexpr int kCodes = kMaxQ - kMinQ + 1;
  static constexpr int kSteps = kCodes <= 8 ? 12 : kCodes <= 32 ? 9 : 5;
  // The largest weight becomes the code limit + offset(step), clipped where that is beyond.
  static constexpr float offset(int step) {
    return -0.8f + 1.8f * static_cast<float>(step) / static_cast<float>(kSteps - 1);
  }
};

template <int kCount, int kMinQ, int kMaxQ>
static inline void keep_better(const float* x, const float* w, const ScaleMin& at, Fit* best) {
  const CodeSums sums = try_codes<kCount, kMinQ, kMaxQ>(x, w, at);
  if (sums.error < best->sums.error) *best = {at, sums};
}

// Improves a fit until nothing changes; each round is a least-squares fit to the codes before.
template <int kCount, int kMinQ, int kMaxQ, typename Solve>
static inline void descend(const float* x, const float* w, const Solve& solve, Fit* fit) {
  constexpr int kMaxRounds = 6;
  for (int round = 0; round < kMaxRounds; ++round) {
    const ScaleMin at = solve(fit->sums, fit->at);
    const CodeSums sums = try_codes<kCount, kMinQ, kMaxQ>(x, w, at);
    if (!(sums.error < fit->sums.error)) return;
    *fit = {at, sums};
  }
}

static inline ScaleMin solve_scale(const CodeSums& sums, const ScaleMin& before) {
  return sums.qq > 0.0f ? ScaleMin{sums.qx / sums.qq, 0.0f} : before;
}

// min >= 0 where `positive_min`.
static inline ScaleMin solve_scale_min(const CodeSums& sums, const RunSums& run, bool positive_min,
                                       const ScaleMin& before) {
  const float determinant = run.one * sums.qq - sums.q * sums.q;
  if (!(determinant > 0.0f)) return before;
  const float scale = (run.one * sums.qx - run.x * sums.q) / determinant;
  const float min = (sums.q * sums.qx - sums.qq * run.x) / determinant;
  if (positive_min && min < 0.0f) return solve_scale(sums, before);
  return {scale, min};
}

// Scale of a symmetric run. It may be negative: the code range reaches one further down than up.
template <int kCount, int kMinQ, int kMaxQ>
static Fit fit_scale(const float* x, const float* w) {
  using Grid = SearchGrid<kMinQ, kMaxQ>;
  const float* largest = std::max_element(
      x, x + kCount, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  Fit best{{}, try_codes<kCount, kMinQ, kMaxQ>(x, w, {})};
  for (int step = 0; step < Grid::kSteps; ++step) {
    for (const int limit : {kMinQ, kMaxQ}) {
      const float code =
          static_cast<float>(limit) + std::copysign(Grid::offset(step), static_cast<float>(limit)) *
                                          (Grid::offset(step) < 0.0f ? -1.0f : 1.0f);
      const ScaleMin first{*largest / code, 0.0f};
      const CodeSums sums = try_codes<kCount, kMinQ, kMaxQ>(x, w, first);
      keep_better<kCount, kMinQ, kMaxQ>(x, w, solve_scale(sums, first), &best);
    }
  }
  descend<kCount, kMinQ, kMaxQ>(x, w, solve_scale, &best);
  return best;
}

// Scale >= 0 and min of a run with codes from 0 to kMaxQ.
template <int kCount, int kMaxQ, bool kPositiveMin>
static Fit fit_scale_min(const float* x, const float* w) {
  using Grid = SearchGrid<0, kMaxQ>;
  const RunSums run = sum_run<kCount>(x, w);
  const auto solve = [&run](const CodeSums& sums, const ScaleMin& before) {
    return solve_scale_min(sums, run, kPositiveMin, before);
  };
  const auto [least, most] = std::minmax_element(x, x + kCount);
  const float low = kPositiveMin ? std::min(*least, 0.0f) : *least;
  const float high = *most;
  const ScaleMin mean{0.0f, kPositiveMin ? std::max(0.0f, -run.x / run.one) : -run.x / run.one};
  Fit best{mean, try_codes<kCount, 0, kMaxQ>(x, w, mean)};
  for (int step = 0; step < Grid::kSteps; ++step) {
    const float scale = (high - low) / (static_cast<float>(kMaxQ) + Grid::offset(step));
    // Clipped at the upper end, or at the lower.
    for (const float start : {low, high - scale * kMaxQ}) {
      const ScaleMin first{scale, kPositiveMin ? std::max(0.0f, -start) : -start};
      const CodeSums sums = try_codes<kCount, 0, kMaxQ>(x, w, first);
      keep_better<kCount, 0, kMaxQ>(x, w, solve(sums, first), &best);
    }
  }
  descend<kCount, 0, kMaxQ>(x, w, solve, &best);
  return best;
}

}  // namespace lola

// The scale, and where the format has one the min, with the least squared error for a run of
// weights.
//
// The error is full of local minima, one for each way to round the weights. So a search rounds with
// scales around the one that just covers the run, takes the least-squares scale of the best codes,
// and goes on from there: rounding anew, then fitting anew, can only lower the error.
#pragma once

#include <algorithm>
#include <cmath>

#include "quant/encode/rounding.h"

namespace lola {

struct Fit {
  ScaleMin at;
  CodeSums sums;  // of the codes that `at` rounds to
  double error;
};

// The scales that a search tries: the largest weight becomes the code limit + offset(step), clipped
// where that is beyond. The fewer codes there are, the more the choice matters.
template <int kCodes>
struct SearchGrid {
  static constexpr int kSteps = kCodes <= 8 ? 14 : kCodes <= 64 ? 10 : 6;
  static constexpr float offset(int step) {
    return -0.8f + 1.8f * static_cast<float>(step) / static_cast<float>(kSteps - 1);
  }
};

// What the runs of one format share: how a scale is tried, solved for, and improved.
template <int kCount, int kMinQ, int kMaxQ, bool kHasMin, bool kPositiveMin>
class RunFit {
 public:
  using Grid = SearchGrid<kMaxQ - kMinQ + 1>;

  // x and w [kCount]: weights and their importance.
  RunFit(const float* x, const float* w) : x_(x), w_(w), run_(sum_run<kCount>(x, w)) {}

  const RunSums& run() const { return run_; }

  Fit evaluate(const ScaleMin& at) const {
    const CodeSums sums = sum_codes<kCount, kMinQ, kMaxQ>(x_, w_, at);
    return {at, sums, squared_error(run_, sums, at)};
  }

  // The fit with the codes that `first` rounds to; its error is theirs, before rounding anew.
  Fit fit_codes_of(const ScaleMin& first) const {
    const CodeSums sums = sum_codes<kCount, kMinQ, kMaxQ>(x_, w_, first);
    const ScaleMin at = solve(sums, first);
    return {at, sums, squared_error(run_, sums, at)};
  }

  Fit descend(Fit fit) const {
    constexpr int kMaxRounds = 8;
    fit = evaluate(fit.at);
    for (int round = 0; round < kMaxRounds; ++round) {
      const Fit next = evaluate(solve(fit.sums, fit.at));
      if (!(next.error < fit.error)) break;
      fit = next;
    }
    return fit;
  }

 private:
  ScaleMin solve(const CodeSums& sums, const ScaleMin& before) const {
    if constexpr (kHasMin) {
      const float determinant = run_.one * sums.qq - sums.q * sums.q;
      if (!(determinant > 0.0f)) return before;
      const float scale = (run_.one * sums.qx - run_.x * sums.q) / determinant;
      const float min = (sums.q * sums.qx - sums.qq * run_.x) / determinant;
      if (!kPositiveMin || min >= 0.0f) return {scale, min};
    }
    return sums.qq > 0.0f ? ScaleMin{sums.qx / sums.qq, 0.0f} : before;
  }

  const float* x_;
  const float* w_;
  RunSums run_;
};

// Scale of a run with codes from kMinQ to kMaxQ. It may be negative: the codes reach one further
// down than up.
template <int kCount, int kMinQ, int kMaxQ>
static Fit fit_scale(const float* x, const float* w) {
  using Run = RunFit<kCount, kMinQ, kMaxQ, false, false>;
  const Run run(x, w);
  const float largest = *std::max_element(
      x, x + kCount, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  Fit best = run.evaluate({});
  for (int step = 0; step < Run::Grid::kSteps; ++step) {
    const float offset = Run::Grid::offset(step);
    for (const float code : {kMinQ - offset, kMaxQ + offset}) {
      const Fit fit = run.fit_codes_of({largest / code, 0.0f});
      if (fit.error < best.error) best = fit;
    }
  }
  return run.descend(best);
}

// Scale >= 0 and min of a run with codes from 0 to kMaxQ.
template <int kCount, int kMaxQ, bool kPositiveMin>
static Fit fit_scale_min(const float* x, const float* w) {
  using Run = RunFit<kCount, 0, kMaxQ, true, kPositiveMin>;
  const Run run(x, w);
  const auto allowed = [](float min) { return kPositiveMin ? std::max(0.0f, min) : min; };
  const auto [least, most] = std::minmax_element(x, x + kCount);
  const float low = -allowed(-*least);
  const float high = *most;
  Fit best = run.evaluate({0.0f, allowed(-run.run().x / run.run().one)});
  for (int step = 0; step < Run::Grid::kSteps; ++step) {
    const float scale = (high - low) / (kMaxQ + Run::Grid::offset(step));
    // Clipped at the upper end, or at the lower.
    for (const float start : {low, high - scale * kMaxQ}) {
      const Fit fit = run.fit_codes_of({scale, allowed(-start)});
      if (fit.error < best.error) best = fit;
    }
  }
  return run.descend(best);
}

}  // namespace lola

// Rounding a run of weights to the codes of one scale, and what that costs.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/float4.h"

namespace lola {

// A weight is scale * q - min. Runs of the formats without min have 0.
struct ScaleMin {
  float scale = 0.0f;
  float min = 0.0f;
};

// Sums over the weights x of a run, each times its importance.
struct RunSums {
  float one = 0.0f;
  float x = 0.0f;
  float xx = 0.0f;
};

// Sums over the weights x and their codes q, each times the importance of the weight.
struct CodeSums {
  float q = 0.0f;
  float qq = 0.0f;
  float qx = 0.0f;
};

// Below this a scale is zero: its inverse must stay finite, times any weight of a file.
inline constexpr float kSmallestScale = 1e-30f;

// Adding this leaves a float no bits for a fraction: it rounds to nearest even at the speed of an
// addition.
inline constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23

static inline float inverse_scale(float scale) {
  return std::fabs(scale) < kSmallestScale ? 0.0f : 1.0f / scale;
}

// The sum of (scale * q - min - x)^2, each times its importance. In double: the parts cancel.
static inline double squared_error(const RunSums& run, const CodeSums& sums, const ScaleMin& at) {
  const double scale = at.scale;
  const double min = at.min;
  return run.xx + scale * (scale * sums.qq - 2.0 * sums.qx) +
         min * (min * run.one + 2.0 * run.x - 2.0 * scale * sums.q);
}

// x and w [kCount]: weights and their importance.
template <int kCount>
static inline RunSums sum_run(const float* x, const float* w) {
  Float4 one = all4(0.0f);
  Float4 sum_x = one;
  Float4 sum_xx = one;
  for (int i = 0; i < kCount; i += 4) {
    const Float4 value = load4(x + i);
    const Float4 weight = load4(w + i);
    const Float4 wx = weight * value;
    one = one + weight;
    sum_x = sum_x + wx;
    sum_xx = sum_xx + wx * value;
  }
  return {sum4(one), sum4(sum_x), sum4(sum_xx)};
}

// The codes nearest to the weights, for a scale and min.
template <int kMinQ, int kMaxQ>
class Rounding {
 public:
  explicit Rounding(const ScaleMin& at)
      : min_(all4(at.min)), inverse_(all4(inverse_scale(at.scale))) {}

  Float4 operator()(Float4 x) const {
    const Float4 ratio = (x + min_) * inverse_;
    const Float4 inside = min4(max4(ratio, all4(kMinQ)), all4(kMaxQ));
    return (inside + all4(kRoundingShift)) - all4(kRoundingShift);
  }

 private:
  Float4 min_;
  Float4 inverse_;
};

template <int kCount, int kMinQ, int kMaxQ>
static inline CodeSums sum_codes(const float* x, const float* w, const ScaleMin& at) {
  const Rounding<kMinQ, kMaxQ> rounding(at);
  Float4 sum_q = all4(0.0f);
  Float4 sum_qq = sum_q;
  Float4 sum_qx = sum_q;
  for (int i = 0; i < kCount; i += 4) {
    const Float4 value = load4(x + i);
    const Float4 q = rounding(value);
    const Float4 wq = load4(w + i) * q;
    sum_q = sum_q + wq;
    sum_qq = sum_qq + wq * q;
    sum_qx = sum_qx + wq * value;
  }
  return {sum4(sum_q), sum4(sum_qq), sum4(sum_qx)};
}

// The codes that sum_codes summed. q [kCount]
template <int kCount, int kMinQ, int kMaxQ>
static inline void write_codes(const float* x, const ScaleMin& at, int8_t* q) {
  const Rounding<kMinQ, kMaxQ> rounding(at);
  for (int i = 0; i < kCount; i += 4) {
    float codes[4];
    store4(rounding(load4(x + i)), codes);
    for (int lane = 0; lane < 4; ++lane) q[i + lane] = static_cast<int8_t>(codes[lane]);
  }
}

// The integer of [kMin, kMax] nearest to a number.
template <int kMin, int kMax>
static inline int nearest_integer(float value) {
  const float low = value < static_cast<float>(kMin) ? static_cast<float>(kMin) : value;
  const float inside = low > static_cast<float>(kMax) ? static_cast<float>(kMax) : low;
  return static_cast<int>((inside + kRoundingShift) - kRoundingShift);
}

}  // namespace lola

// Rounding a run of weights to the codes of one scale, and what that costs.
#pragma once

#include <cmath>
#include <cstdint>

namespace lola {

// A weight is scale * q - min. Blocks have any min, symmetric ones 0.
struct ScaleMin {
  float scale = 0.0f;
  float min = 0.0f;
};

// Sums over the weights x of a run, each times its importance.
struct RunSums {
  float one = 0.0f;
  float x = 0.0f;
};

// Sums over the weights x and their codes q, each times the importance of the weight.
struct CodeSums {
  float error = 0.0f;  // (scale * q - min - x)^2
  float q = 0.0f;
  float qq = 0.0f;
  float qx = 0.0f;
};

// Below this a scale is zero: its inverse must stay finite, times any weight of a file.
inline constexpr float kSmallestScale = 1e-30f;

// Sums run in this many lanes, so that a compiler may vectorise them without reordering any.
inline constexpr int kLanes = 8;

static inline float sum_lanes(const float* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static inline float inverse_scale(float scale) {
  return std::fabs(scale) < kSmallestScale ? 0.0f : 1.0f / scale;
}

// The code nearest to a weight that was divided by its scale. Adding 1.5 * 2^23 leaves no bits for
// a fraction, which rounds to nearest even at the speed of an addition.
template <int kMinQ, int kMaxQ>
static inline float nearest_code(float ratio) {
  constexpr float kShift = 12582912.0f;
  ratio = ratio < kMinQ ? kMinQ : ratio;
  ratio = ratio > kMaxQ ? kMaxQ : ratio;
  return (ratio + kShift) - kShift;
}

// x and w [kCount]: weights and their importance.
template <int kCount>
static inline RunSums sum_run(const float* x, const float* w) {
  float one[kLanes] = {};
  float wx[kLanes] = {};
  for (int i = 0; i < kCount; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      one[lane] += w[i + lane];
      wx[lane] += w[i + lane] * x[i + lane];
    }
  }
  return {sum_lanes(one), sum_lanes(wx)};
}

template <int kCount, int kMinQ, int kMaxQ>
static inline CodeSums try_codes(const float* x, const float* w, const ScaleMin& fit) {
  const float inverse = inverse_scale(fit.scale);
  float error[kLanes] = {};
  float sum_q[kLanes] = {};
  float sum_qq[kLanes] = {};
  float sum_qx[kLanes] = {};
  for (int i = 0; i < kCount; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane];
      const float q = nearest_code<kMinQ, kMaxQ>((value + fit.min) * inverse);
      const float wq = w[i + lane] * q;
      const float difference = fit.scale * q - fit.min - value;
      error[lane] += w[i + lane] * (difference * difference);
      sum_q[lane] += wq;
      sum_qq[lane] += wq * q;
      sum_qx[lane] += wq * value;
    }
  }
  return {sum_lanes(error), sum_lanes(sum_q), sum_lanes(sum_qq), sum_lanes(sum_qx)};
}

// The codes that try_codes summed. q [kCount]
template <int kCount, int kMinQ, int kMaxQ>
static inline void write_codes(const float* x, const ScaleMin& fit, int8_t* q) {
  const float inverse = inverse_scale(fit.scale);
  for (int i = 0; i < kCount; ++i) {
    q[i] = static_cast<int8_t>(nearest_code<kMinQ, kMaxQ>((x[i] + fit.min) * inverse));
  }
}

}  // namespace lola

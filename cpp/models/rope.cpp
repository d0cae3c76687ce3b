#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lola {
namespace {

// The pair index whose wavelength makes `rotations` turns over the original context (YaRN, arXiv
// 2309.00071, section 3.2).
double yarn_pair(const RopeParameters& rope, double rotations) {
  return static_cast<double>(rope.dimensions) *
         std::log(rope.original_context / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(rope.base));
}

// 1 where a frequency is kept, 0 where it is divided by the factor, a ramp between.
double yarn_kept(const RopeParameters& rope, int64_t pair) {
  const double last = static_cast<double>(rope.dimensions - 1);
  const double low = std::max(0.0, std::floor(yarn_pair(rope, rope.beta_fast)));
  const double high = std::min(last, std::ceil(yarn_pair(rope, rope.beta_slow)));
  const double ramp = (static_cast<double>(pair) - low) / std::max(0.001, high - low);
  return 1.0 - std::clamp(ramp, 0.0, 1.0);
}

}  // namespace

Rope::Rope(const RopeParameters& rope) : magnitude_(rope.attention_factor) {
  for (int64_t pair = 0; pair < rope.dimensions / 2; ++pair) {
    double frequency = std::pow(
        rope.base, -2.0 * static_cast<double>(pair) / static_cast<double>(rope.dimensions));
    if (!rope.frequency_divisors.empty()) {
      frequency /= static_cast<double>(rope.frequency_divisors[static_cast<size_t>(pair)]);
    }
    if (rope.scaling == RopeScaling::kLinear) frequency /= rope.factor;
    if (rope.scaling == RopeScaling::kYarn) {
      const double kept = yarn_kept(rope, pair);
      frequency = frequency * kept + frequency / rope.factor * (1.0 - kept);
    }
    frequencies_.push_back(frequency);
  }
}

void Rope::angles(int64_t position, float* cosine, float* sine) const {
  for (size_t pair = 0; pair < frequencies_.size(); ++pair) {
    const double angle = static_cast<double>(position) * frequencies_[pair];
    cosine[pair] = static_cast<float>(std::cos(angle) * magnitude_);
    sine[pair] = static_cast<float>(std::sin(angle) * magnitude_);
  }
}

}  // namespace lola

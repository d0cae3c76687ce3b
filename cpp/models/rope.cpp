#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lola {
namespace {

constexpr int64_t kDigitBase = 256, kDigits = 3;
constexpr int64_t kPositionsOfDigits = kDigitBase * kDigitBase * kDigitBase;  // 16 million

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
  for (int64_t digit = 0, weight = 1; digit < kDigits; ++digit, weight *= kDigitBase) {
    Digit& of = digits_.emplace_back();
    for (int64_t value = 0; value < kDigitBase; ++value) {
      for (const double frequency : frequencies_) {
        of.cosine.push_back(std::cos(static_cast<double>(value * weight) * frequency));
        of.sine.push_back(std::sin(static_cast<double>(value * weight) * frequency));
      }
    }
  }
}

// cos(a + b) and sin(a + b), digit by digit: a step of hundreds of sessions should not wait for
// thousands of calls of cos and sin.
void Rope::angles(int64_t position, float* cosine, float* sine) const {
  if (position >= kPositionsOfDigits) return exact_angles(position, cosine, sine);
  const size_t pairs = frequencies_.size();
  const double *c[kDigits], *s[kDigits];
  for (size_t digit = 0; digit < kDigits; ++digit, position /= kDigitBase) {
    const size_t at = static_cast<size_t>(position % kDigitBase) * pairs;
    c[digit] = digits_[digit].cosine.data() + at;
    s[digit] = digits_[digit].sine.data() + at;
  }
  for (size_t pair = 0; pair < pairs; ++pair) {
    double real = c[0][pair], imaginary = s[0][pair];
    for (int64_t digit = 1; digit < kDigits; ++digit) {
      const double turned = real * c[digit][pair] - imaginary * s[digit][pair];
      imaginary = imaginary * c[digit][pair] + real * s[digit][pair];
      real = turned;
    }
    cosine[pair] = static_cast<float>(real * magnitude_);
    sine[pair] = static_cast<float>(imaginary * magnitude_);
  }
}

void Rope::exact_angles(int64_t position, float* cosine, float* sine) const {
  for (size_t pair = 0; pair < frequencies_.size(); ++pair) {
    const double angle = static_cast<double>(position) * frequencies_[pair];
    cosine[pair] = static_cast<float>(std::cos(angle) * magnitude_);
    sine[pair] = static_cast<float>(std::sin(angle) * magnitude_);
  }
}

}  // namespace lola

#include "sampling/candidates.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "base/error.h"

namespace lola {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Turns the sign and magnitude of a float into an integer of the same order, and back: compilers
// make vector code of an integer maximum, and not of one that must mind NaN.
int32_t ordered_bits(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }
int32_t ordered(float value) { return ordered_bits(std::bit_cast<int32_t>(value)); }

[[noreturn]] void throw_not_a_logit(std::span<const float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < kInfinity)) {
      throw UsageError(
          message("logits[", i, "]: found ", logits[i], ", wanted a finite number or -infinity"));
    }
  }
  throw UsageError(
      "logits: found no token that may be chosen, wanted at least one above -infinity");
}

}  // namespace

float checked_max(std::span<const float> logits) {
  int32_t greatest = std::numeric_limits<int32_t>::min();
  int32_t least = std::numeric_limits<int32_t>::max();
  for (const float logit : logits) {
    const int32_t key = ordered(logit);
    greatest = key > greatest ? key : greatest;
    least = key < least ? key : least;
  }
  // A NaN lies above +infinity or, with its sign bit set, below -infinity.
  const bool wrong = greatest >= ordered(kInfinity) || least < ordered(-kInfinity);
  if (wrong || greatest <= ordered(-kInfinity)) throw_not_a_logit(logits);
  return std::bit_cast<float>(ordered_bits(greatest));
}

int32_t first_of(std::span<const float> logits, float max) {
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin());
}

double exp_sum(std::span<const float> logits, float max) {
  constexpr size_t kBlock = 1024;  // the terms of one pairwise sum in float
  std::array<float, kBlock> terms;
  double sum = 0.0;
  for (size_t start = 0; start < logits.size(); start += kBlock) {
    const size_t count = std::min(kBlock, logits.size() - start);
    for (size_t i = 0; i < count; ++i) terms[i] = exp_negative(logits[start + i] - max);
    std::fill(terms.begin() + static_cast<std::ptrdiff_t>(count), terms.end(), 0.0f);
    // Halves are added pairwise: the order is fixed, and each addition is that of two vectors.
    for (size_t width = kBlock / 2; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) terms[i] += terms[i + width];
    }
    sum += terms[0];
  }
  return sum;
}

std::vector<Candidate> best(std::span<const float> logits, int64_t k) {
  const size_t wanted = std::min(static_cast<size_t>(k), logits.size());
  if (wanted == 0) return {};
  std::vector<Candidate> kept;
  const size_t room = 2 * wanted + 16;
  kept.reserve(std::min(room, logits.size()));
  const auto prune = [&] {
    std::nth_element(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(wanted - 1),
                     kept.end(), better);
    kept.resize(wanted);
    return kept.back().logit;
  };
  float worst = -kInfinity;
  bool full = false;  // `wanted` tokens at least as good as `worst`, with lower ids, are kept
  for (size_t i = 0; i < logits.size(); ++i) {
    if (full && !(logits[i] > worst)) continue;
    kept.push_back({logits[i], static_cast<int32_t>(i)});
    if (kept.size() >= room) {
      worst = prune();
      full = true;
    }
  }
  if (kept.size() > wanted) prune();
  std::sort(kept.begin(), kept.end(), better);
  return kept;
}

}  // namespace lola

// The best of a vocabulary's logits: what a sampler needs of them in most cases.
#pragma once

#include <cstdint>
#include <span>

namespace lola {

struct Candidate {
  float logit;
  int32_t id;
};

// The order of all choices: the greater logit first, then the lower id.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

inline constexpr int64_t kMostBest = 1024;

struct TopLogits {
  int64_t vocabulary;
  double total;  // sum of exp(logit - the greatest) over the vocabulary
  // The best of all, best first, kMostBest at most. Empty where nobody has looked, a logit is NaN
  // or +infinity, or none is finite.
  std::span<const Candidate> best;
};

}  // namespace lola

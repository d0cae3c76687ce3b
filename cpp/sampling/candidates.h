// Passes over all logits of a vocabulary. None of them sorts it, and none calls the math library:
// its last bits differ between platforms, and a sampled token must not.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/top_logits.h"

namespace lola {

// What one pass over logits [vocabulary] finds; all choices start from it.
struct Peaks {
  float max;
  std::vector<float> of_block;  // the greatest of each kLogitBlock logits
};

// UsageError on NaN, +infinity, or when no logit is finite.
Peaks find_peaks(std::span<const float> logits);

// The lowest id whose logit is the greatest.
int32_t greatest(std::span<const float> logits, const Peaks& peaks);

// Sum of exp(logit - max) over logits [vocabulary].
double exp_sum(std::span<const float> logits, float max);

// Turns logits into weights of drawing: exp((logit - max) / temperature), or 0 where a token's
// probability is below min_p times that of the most likely one.
void to_weights(std::span<float> logits, float max, double temperature, double min_p);

// The tokens whose logits are no less than `least`, in the order of their ids.
std::vector<Candidate> at_least(std::span<const float> logits, const Peaks& peaks, float least);

// The k best, best first; 0 <= k.
std::vector<Candidate> best(std::span<const float> logits, const Peaks& peaks, int64_t k);

// Best first. In linear time, for candidates that stand in the order of their ids.
void sort_best_first(std::vector<Candidate>& candidates);

}  // namespace lola

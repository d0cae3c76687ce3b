// The recall error weighted by the softmax attention that the key can expect: for standard normal
// q, E exp(q'k / sqrt d) = exp(||k||^2 / (2 d)). kappa is measured for each base model, and may be
// negative.
#pragma once

#include <cmath>

#include "memory/policies/pair_facts.h"

namespace lola {

// The logarithm of the weighted error; -inf for an error of 0.
LOLA_HOST_DEVICE inline float score_weighted_recall(const PairFacts& pair) {
  return std::log(pair.recall_error) +
         pair.kappa * pair.key_norm2 / (2.0f * static_cast<float>(pair.head_dim));
}

}  // namespace lola

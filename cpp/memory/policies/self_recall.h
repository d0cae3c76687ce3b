// Keeps the pairs that the hidden state recalls worst: the rule of the LoLA paper (arXiv
// 2505.23666).
#pragma once

#include "memory/policies/pair_facts.h"

namespace lola {

LOLA_HOST_DEVICE inline float score_self_recall(const PairFacts& pair) { return pair.recall_error; }

}  // namespace lola

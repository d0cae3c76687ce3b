// Keeps the most recent pairs: a larger window.
#pragma once

#include "memory/policies/pair_facts.h"

namespace lola {

LOLA_HOST_DEVICE inline float score_recent(const PairFacts& pair) {
  return -static_cast<float>(pair.age);
}

}  // namespace lola

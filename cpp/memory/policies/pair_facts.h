// What a cache policy may know about a pair that competes for a place in the sparse cache.
#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace lola {

struct PairFacts {
  float
      recall_error;  // SRE = ||phi(k)'Hs / phi(k)'s - v||^2; 0 for policies that do not ask for it
  float key_norm2;   // ||k||^2
  float kappa;       // the head's, from the adapter
  int32_t head_dim;  // d
  int64_t position;  // of the pair
  int64_t age;   // tokens seen - position; small, and so exact as a float where a position is not
  int64_t head;  // query head
  uint64_t seed;
};

}  // namespace lola

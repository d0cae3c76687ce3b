// Keeps a uniform random sample of all pairs that left the window: each has a fixed number, and the
// largest stay.
#pragma once

#include "memory/policies/pair_facts.h"

namespace lola {

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
LOLA_HOST_DEVICE inline uint64_t scramble(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

LOLA_HOST_DEVICE inline float score_random(const PairFacts& pair) {
  const uint64_t key = scramble(scramble(pair.seed) ^ static_cast<uint64_t>(pair.head));
  const uint64_t bits = scramble(key ^ static_cast<uint64_t>(pair.position));
  return static_cast<float>(bits >> 40) * 0x1p-24f;  // 24 bits: exact in float32
}

}  // namespace lola

// The three memories of one LoLA layer, laid out in one run of bytes that belongs to the session.
//
// How many pairs each memory holds follows from the position alone (see counts_at), so only the pairs themselves,
// their positions and the sums are stored. Each kv head's memories are contiguous and independent of the others'.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memory/config.h"

namespace lola {

// How many pairs sit where after `position` tokens, for each query head: window + cache + absorbed = position. Always.
struct MemoryCounts {
  int64_t window;
  int64_t cache;
  int64_t absorbed;
};

MemoryCounts counts_at(const LolaConfig& config, int64_t position);

// One named array inside a layer's bytes, for state files and inspection. Slowest dimension first.
struct MemorySection {
  enum class Element { kPair, kF32, kI64 };  // kPair: the session's PairType
  std::string name;                          // "window_k", "cache_v", "hidden_state", ...
  Element element;
  std::vector<int64_t> shape;
  int64_t offset;
  int64_t bytes;
};

}  // namespace lola

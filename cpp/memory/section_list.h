// Lays arrays out one after the other in a run of bytes, each with a name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "memory/config.h"

namespace lola {

// One named array inside a layer's bytes, for state files and inspection. Slowest dimension first.
struct MemorySection {
  enum class Element { kPair, kF32, kI64 };  // kPair: the session's PairType
  std::string name;                          // "window_k", "cache_v", "hidden_state", ...
  Element element;
  std::vector<int64_t> shape;
  int64_t offset;
  int64_t bytes;
};

class SectionList {
 public:
  explicit SectionList(PairType pair_type) : pair_type_(pair_type) {}

  // Returns the offset of the new array. UsageError when the sizes exceed what can be addressed.
  int64_t add(const char* name, MemorySection::Element element, std::vector<int64_t> shape);

  int64_t bytes() const { return bytes_; }
  const std::vector<MemorySection>& sections() const { return sections_; }

 private:
  PairType pair_type_;
  int64_t bytes_ = 0;
  std::vector<MemorySection> sections_;
};

}  // namespace lola

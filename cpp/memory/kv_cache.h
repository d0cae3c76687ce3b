// The memory of one softmax layer: all keys and values, up to a capacity.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/config.h"
#include "memory/section_list.h"

namespace lola {

// The cache of one kv head: the pair of position p in row p.
struct KvHeadCache {
  uint8_t* k;  // [capacity, row_bytes]
  uint8_t* v;  // [capacity, row_bytes]
};

class KvCacheLayout {
 public:
  // capacity: tokens. UsageError when the shape or the capacity is out of range.
  KvCacheLayout(const AttentionShape& shape, PairType pair_type, int64_t capacity);

  int64_t bytes() const { return list_.bytes(); }
  const std::vector<MemorySection>& sections() const { return list_.sections(); }
  PairType pair_type() const { return pair_type_; }
  int64_t capacity() const { return capacity_; }
  int64_t row_bytes() const { return row_bytes_; }

  KvHeadCache head(uint8_t* memory, int64_t kv_head) const {
    const int64_t part = kv_head * capacity_ * row_bytes_;
    return {memory + k_ + part, memory + v_ + part};
  }

 private:
  SectionList list_;
  PairType pair_type_;
  int64_t capacity_;
  int64_t row_bytes_;
  int64_t k_ = 0;
  int64_t v_ = 0;
};

}  // namespace lola

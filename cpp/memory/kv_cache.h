// The memory of softmax layers: all keys and values, in pages, so that a cache grows without being
// copied.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/config.h"
#include "memory/section_list.h"

namespace lola {

inline constexpr int64_t kKvPageTokens = 256;

// A page of one kv head: the pair of position p in row p % kKvPageTokens.
struct KvHeadPage {
  uint8_t* k;  // [kKvPageTokens, row_bytes]
  uint8_t* v;  // [kKvPageTokens, row_bytes]
};

// What one layer has in a page.
class KvPageLayout {
 public:
  // UsageError when the shape is out of range.
  KvPageLayout(const AttentionShape& shape, PairType pair_type);

  int64_t bytes() const { return list_.bytes(); }
  const std::vector<MemorySection>& sections() const { return list_.sections(); }
  PairType pair_type() const { return pair_type_; }
  int64_t row_bytes() const { return row_bytes_; }
  int64_t k_offset() const { return k_; }
  int64_t v_offset() const { return v_; }

  KvHeadPage head(uint8_t* page, int64_t kv_head) const {
    const int64_t part = kv_head * kKvPageTokens * row_bytes_;
    return {page + k_ + part, page + v_ + part};
  }

 private:
  SectionList list_;
  PairType pair_type_;
  int64_t row_bytes_;
  int64_t k_ = 0;
  int64_t v_ = 0;
};

// Where the pairs of one layer are: position p in page p / kKvPageTokens, which holds other layers'
// pairs too.
struct KvPages {
  uint8_t* const* pages;
  int64_t offset;  // of the layer in each

  uint8_t* of(int64_t position) const { return pages[position / kKvPageTokens] + offset; }
};

}  // namespace lola

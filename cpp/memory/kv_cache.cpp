#include "memory/kv_cache.h"

namespace lola {

KvPageLayout::KvPageLayout(const AttentionShape& shape, PairType pair_type)
    : list_(pair_type), pair_type_(pair_type) {
  validate(shape, pair_type);
  row_bytes_ = pair_row_bytes(pair_type, shape.head_dim);
  const std::vector<int64_t> rows = {shape.kv_heads, kKvPageTokens, shape.head_dim};
  k_ = list_.add("kv_cache_k", MemorySection::Element::kPair, rows);
  v_ = list_.add("kv_cache_v", MemorySection::Element::kPair, rows);
}

}  // namespace lola

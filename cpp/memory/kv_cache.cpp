#include "memory/kv_cache.h"

#include "base/error.h"

namespace lola {

KvCacheLayout::KvCacheLayout(const AttentionShape& shape, PairType pair_type, int64_t capacity)
    : list_(pair_type), pair_type_(pair_type), capacity_(capacity) {
  validate(shape, pair_type);
  constexpr int64_t kMaxCapacity = int64_t{1} << 32;
  if (capacity < 1 || capacity > kMaxCapacity) {
    throw UsageError(
        message("capacity of the kv cache: found ", capacity, ", wanted 1 to ", kMaxCapacity));
  }
  row_bytes_ = pair_row_bytes(pair_type, shape.head_dim);
  k_ = list_.add("kv_cache_k", MemorySection::Element::kPair,
                 {shape.kv_heads, capacity, shape.head_dim});
  v_ = list_.add("kv_cache_v", MemorySection::Element::kPair,
                 {shape.kv_heads, capacity, shape.head_dim});
}

}  // namespace lola

#include "memory/layer_memory.h"

#include <algorithm>

namespace lola {
namespace {

const AttentionShape& checked(const AttentionShape& shape, const LolaConfig& config) {
  validate(config, shape);
  return shape;
}

}  // namespace

int64_t window_begin(const LolaConfig& config, int64_t position) {
  const int64_t last_boundary = position - position % config.chunk_size;
  return std::max<int64_t>(0, last_boundary - config.window_size);
}

MemoryCounts counts_at(const LolaConfig& config, int64_t position) {
  const int64_t left = window_begin(config, position);
  const int64_t cache = std::min(left, sparse_capacity(config));
  return {position - left, cache, left - cache};
}

LayerMemoryLayout::LayerMemoryLayout(const AttentionShape& shape, const LolaConfig& config)
    : shape_(checked(shape, config)),
      list_(config.pair_type),
      row_bytes_(pair_row_bytes(config.pair_type, shape.head_dim)),
      window_capacity_(config.window_size + config.chunk_size),
      sparse_capacity_(lola::sparse_capacity(config)),
      has_pending_(config.chunk_size < kFlushPairs) {
  using Element = MemorySection::Element;
  const int64_t d = shape.head_dim;
  window_k_ = list_.add("window_k", Element::kPair, {shape.kv_heads, window_capacity_, d});
  window_v_ = list_.add("window_v", Element::kPair, {shape.kv_heads, window_capacity_, d});
  if (sparse_capacity_ > 0) {
    const int64_t owners = config.scope == Scope::kHead ? shape.heads : shape.kv_heads;
    cache_k_ = list_.add("cache_k", Element::kPair, {owners, sparse_capacity_, d});
    cache_v_ = list_.add("cache_v", Element::kPair, {owners, sparse_capacity_, d});
    cache_position_ = list_.add("cache_position", Element::kI64, {owners, sparse_capacity_});
    cache_score_ = list_.add("cache_score", Element::kF32, {owners, sparse_capacity_});
  }
  hidden_state_ = list_.add("hidden_state", Element::kF32, {shape.heads, shape.feature_size, d});
  hidden_sum_ = list_.add("hidden_sum", Element::kF32, {shape.heads, shape.feature_size});
  if (has_pending_) {
    pending_state_ =
        list_.add("pending_state", Element::kF32, {shape.heads, shape.feature_size, d});
    pending_sum_ = list_.add("pending_sum", Element::kF32, {shape.heads, shape.feature_size});
  }
}

SlidingWindow LayerMemoryLayout::sliding_window(uint8_t* memory, int64_t kv_head) const {
  const int64_t part = kv_head * window_capacity_ * row_bytes_;
  return {memory + window_k_ + part, memory + window_v_ + part, window_capacity_};
}

SparseCache LayerMemoryLayout::sparse_cache(uint8_t* memory, int64_t owner) const {
  const int64_t first = owner * sparse_capacity_;
  return {memory + cache_k_ + first * row_bytes_, memory + cache_v_ + first * row_bytes_,
          reinterpret_cast<int64_t*>(memory + cache_position_) + first,
          reinterpret_cast<float*>(memory + cache_score_) + first};
}

HiddenState LayerMemoryLayout::hidden_state(uint8_t* memory, int64_t query_head) const {
  const int64_t sum_part = query_head * shape_.feature_size;
  const int64_t state_part = sum_part * shape_.head_dim;
  const auto floats = [memory](int64_t offset) {
    return reinterpret_cast<float*>(memory + offset);
  };
  return {floats(hidden_state_) + state_part, floats(hidden_sum_) + sum_part,
          has_pending_ ? floats(pending_state_) + state_part : nullptr,
          has_pending_ ? floats(pending_sum_) + sum_part : nullptr};
}

}  // namespace lola

// The three memories of one LoLA layer, laid out in one run of bytes that belongs to the session.
//
// How many pairs each memory holds follows from the position alone (see counts_at), so only the
// pairs themselves, their positions and the sums are stored. In every array the part of one kv head
// is contiguous and independent of the others', so kv heads can be advanced in parallel. All bytes
// zero is the state before the first token.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/config.h"
#include "memory/section_list.h"

namespace lola {

// How many pairs sit where after `position` tokens, for each query head: window + cache + absorbed
// = position. Always.
struct MemoryCounts {
  int64_t window;
  int64_t cache;
  int64_t absorbed;
};

MemoryCounts counts_at(const LolaConfig& config, int64_t position);

// The position of the oldest pair in the window after `position` tokens: all before it have left.
int64_t window_begin(const LolaConfig& config, int64_t position);

// Memory 1, of a kv head: a ring, the pair of position p in row p % capacity.
struct SlidingWindow {
  uint8_t* k;  // [capacity, row_bytes]
  uint8_t* v;  // [capacity, row_bytes]
  int64_t capacity;
};

// Memory 2, of an owner (a query head or a kv head): its pairs from the oldest to the newest.
struct SparseCache {
  uint8_t* k;         // [sparse_size, row_bytes]
  uint8_t* v;         // [sparse_size, row_bytes]
  int64_t* position;  // [sparse_size]
  float* score;       // [sparse_size], at the last boundary; 0 until pairs had to compete
};

// Memory 3, of a query head: Hs = sum phi(k) v', s = sum phi(k). What was absorbed since the last
// flush waits in the pending sums, so that few and large additions reach the long sums: see
// hidden_state.cpp. Where boundaries bring kFlushPairs or more, there are none (null).
struct HiddenState {
  float* state;          // Hs [feature_size, head_dim]
  float* sum;            // s [feature_size]
  float* pending_state;  // [feature_size, head_dim], or null
  float* pending_sum;    // [feature_size], or null
};

constexpr int64_t kFlushPairs = 64;

class LayerMemoryLayout {
 public:
  // UsageError when validate() objects.
  LayerMemoryLayout(const AttentionShape& shape, const LolaConfig& config);

  int64_t bytes() const { return list_.bytes(); }
  const std::vector<MemorySection>& sections() const { return list_.sections(); }
  int64_t row_bytes() const { return row_bytes_; }

  // memory: bytes() bytes, aligned to 8.
  SlidingWindow sliding_window(uint8_t* memory, int64_t kv_head) const;
  SparseCache sparse_cache(uint8_t* memory, int64_t owner) const;  // only where sparse_capacity > 0
  HiddenState hidden_state(uint8_t* memory, int64_t query_head) const;

 private:
  AttentionShape shape_;
  SectionList list_;
  int64_t row_bytes_;
  int64_t window_capacity_;
  int64_t sparse_capacity_;
  bool has_pending_;
  int64_t window_k_ = 0;
  int64_t window_v_ = 0;
  int64_t cache_k_ = 0;
  int64_t cache_v_ = 0;
  int64_t cache_position_ = 0;
  int64_t cache_score_ = 0;
  int64_t hidden_state_ = 0;
  int64_t hidden_sum_ = 0;
  int64_t pending_state_ = 0;
  int64_t pending_sum_ = 0;
};

}  // namespace lola

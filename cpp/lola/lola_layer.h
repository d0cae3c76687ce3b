// The learned parts of one LoLA layer, and what travels through its attention.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "lola/feature_map.h"
#include "memory/config.h"
#include "memory/layer_memory.h"

namespace lola {

struct LolaLayer {
  AttentionShape shape;
  FeatureMap feature_map;
  const float* query_map;  // W of each query head, [heads, map_size, head_dim]
  const float* key_map;    // W of each query head, [heads, map_size, head_dim]
  const float* gate;       // g = sigmoid(window factor), [heads]
  const float* kappa;      // of the policy `weighted_recall`, 0 where nothing is known, [heads]
};

// Queries, keys and values of some tokens, float32, after RoPE; strides in floats from token to
// token.
struct QkvRows {
  const float* q;  // [tokens, heads * head_dim]
  int64_t q_stride;
  const float* k;  // [tokens, kv_heads * head_dim]
  int64_t k_stride;
  const float* v;  // [tokens, kv_heads * head_dim]
  int64_t v_stride;

  QkvRows from(int64_t token) const {
    return {q + token * q_stride, q_stride, k + token * k_stride, k_stride,
            v + token * v_stride, v_stride};
  }
};

// Memory for intermediate results that grows and is used again. What it holds does not outlive the
// next get().
template <typename T>
class ScratchArray {
 public:
  T* get(int64_t count) {
    if (static_cast<size_t>(count) > values_.size()) values_.resize(static_cast<size_t>(count));
    return values_.data();
  }

 private:
  std::vector<T> values_;
};

// One per thread.
struct LolaScratch {
  ScratchArray<float> queries;
  ScratchArray<float> keys;
  ScratchArray<float> values;
  ScratchArray<float> features;
  ScratchArray<float> logits;
  ScratchArray<float> exact;   // partial sums over exact pairs
  ScratchArray<float> linear;  // partial sums over the hidden state
  ScratchArray<float> state;   // a hidden state, or what will be added to one
  ScratchArray<float> scores;
  ScratchArray<float> head_scores;
  ScratchArray<int64_t> positions;
  ScratchArray<int64_t> ranking;
  ScratchArray<uint8_t> kept;
};

// One kv head of one layer, with its memories and the query heads that read it: the unit of all the
// work in this folder.
struct KvHead {
  const Kernels& kernels;
  const LolaLayer& layer;
  const LolaConfig& config;
  const LayerMemoryLayout& layout;
  uint8_t* memory;  // the layer's
  int64_t index;    // which kv head
  LolaScratch& scratch;

  int64_t group_size() const { return layer.shape.group_size(); }
  int64_t head_dim() const { return layer.shape.head_dim; }
  int64_t first_query_head() const { return index * group_size(); }
  // Sparse caches that belong to this kv head, and the query heads that share each.
  int64_t owners() const { return config.scope == Scope::kHead ? group_size() : 1; }
  int64_t heads_per_owner() const { return group_size() / owners(); }
  SlidingWindow window() const { return layout.sliding_window(memory, index); }
  SparseCache sparse_cache(int64_t owner) const {
    return layout.sparse_cache(memory, index * owners() + owner);
  }
  HiddenState hidden_state(int64_t query_head) const {
    return layout.hidden_state(memory, query_head);
  }
};

}  // namespace lola

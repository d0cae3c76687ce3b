// Where the memories of a session lie, stage by stage.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "memory/kv_cache.h"
#include "memory/layer_memory.h"

namespace lola {

class Model;

struct SessionConfig {
  LolaConfig lola;             // of the layers with LoLA attention
  int64_t context_length = 0;  // tokens that the KV cache of softmax layers holds
};

// Bytes of a session's memory in one stage.
struct MemoryRange {
  size_t stage;
  int64_t offset;
  int64_t bytes;
};

// Where each layer's memory lies in a session's bytes, and how many they are: known before any is
// taken.
class SessionLayout {
 public:
  // UsageError where the configuration is impossible.
  SessionLayout(const Model& model, const SessionConfig& config);

  // Memories of all layers, and the logits of the last token.
  int64_t bytes() const;
  // In each stage.
  const std::vector<int64_t>& stage_bytes() const { return stage_bytes_; }
  int64_t layers() const { return static_cast<int64_t>(offsets_.size()); }
  // Of a layer's memory in that of its stage.
  int64_t offset(int64_t layer) const { return offsets_[static_cast<size_t>(layer)]; }
  bool is_lola(int64_t layer) const { return is_lola_[static_cast<size_t>(layer)]; }
  const LayerMemoryLayout& lola() const { return *lola_; }
  const KvCacheLayout& kv() const { return *kv_; }
  bool has_kv() const { return kv_.has_value(); }
  // All of a LoLA layer; of a KV cache what it holds after `position` tokens, an array at a time.
  std::vector<MemoryRange> used(int64_t layer, int64_t position) const;
  // Of all layers, neighbours joined.
  std::vector<MemoryRange> used(int64_t position) const;

 private:
  std::optional<LayerMemoryLayout> lola_;  // of every LoLA layer
  std::optional<KvCacheLayout> kv_;        // of every softmax layer
  std::vector<size_t> stages_;
  std::vector<int64_t> offsets_;
  std::vector<bool> is_lola_;
  std::vector<int64_t> stage_bytes_;
  int64_t logits_bytes_ = 0;
};

}  // namespace lola

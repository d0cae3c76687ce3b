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

inline constexpr int64_t kNoPage = -1;

// Bytes of a session's memory in one stage: of the part that does not grow, or of a page.
struct MemoryRange {
  size_t stage;
  int64_t page;  // or kNoPage
  int64_t offset;
  int64_t bytes;
};

// What a stage has of a session.
struct StageBytes {
  int64_t fixed;  // LoLA layers
  int64_t page;   // softmax layers: kKvPageTokens of each
};

// Where each layer's memory lies in a session's bytes, and how many they are: known before any is
// taken.
class SessionLayout {
 public:
  // UsageError where the configuration is impossible.
  SessionLayout(const Model& model, const SessionConfig& config);

  // Memories of all layers after `tokens` tokens, and the logits of the last one.
  int64_t bytes(int64_t tokens) const;
  const std::vector<StageBytes>& stages() const { return stages_; }
  int64_t layers() const { return static_cast<int64_t>(places_.size()); }
  bool is_lola(int64_t layer) const { return place(layer).lola; }
  // Of a layer's memory in what its stage has, or in each page.
  int64_t offset(int64_t layer) const { return place(layer).offset; }
  const LayerMemoryLayout& lola() const { return *lola_; }
  bool has_lola() const { return lola_.has_value(); }
  const KvPageLayout& kv() const { return *kv_; }
  bool has_kv() const { return kv_.has_value(); }

  // An array of a layer, as far as `position` tokens fill it; in the order of its elements.
  std::vector<MemoryRange> ranges(int64_t layer, const MemorySection& section,
                                  int64_t position) const;

 private:
  struct Place {
    size_t stage;
    int64_t offset;
    bool lola;
  };

  const Place& place(int64_t layer) const { return places_[static_cast<size_t>(layer)]; }

  std::optional<LayerMemoryLayout> lola_;  // of every LoLA layer
  std::optional<KvPageLayout> kv_;         // of every softmax layer
  std::vector<Place> places_;
  std::vector<StageBytes> stages_;
  int64_t logits_bytes_ = 0;
};

inline int64_t page_count(int64_t tokens) { return (tokens + kKvPageTokens - 1) / kKvPageTokens; }

}  // namespace lola

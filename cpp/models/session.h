// One conversation: its memories, its position, and the logits after its last token.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "models/model.h"

namespace lola {

struct SessionConfig {
  LolaConfig lola;             // of the layers with LoLA attention
  int64_t context_length = 0;  // tokens that the KV cache of softmax layers holds
};

struct MemoryRange {
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
  int64_t bytes() const { return memory_bytes_ + logits_bytes_; }
  int64_t memory_bytes() const { return memory_bytes_; }
  int64_t layers() const { return static_cast<int64_t>(offsets_.size()); }
  int64_t offset(int64_t layer) const { return offsets_[static_cast<size_t>(layer)]; }
  bool is_lola(int64_t layer) const { return is_lola_[static_cast<size_t>(layer)]; }
  const LayerMemoryLayout& lola() const { return *lola_; }
  const KvCacheLayout& kv() const { return *kv_; }
  // What a layer's memory holds after `position` tokens, as ranges of the session's memory.
  std::vector<MemoryRange> used(int64_t layer, int64_t position) const;
  bool has_kv() const { return kv_.has_value(); }

 private:
  std::optional<LayerMemoryLayout> lola_;  // of every LoLA layer
  std::optional<KvCacheLayout> kv_;        // of every softmax layer
  std::vector<int64_t> offsets_;
  std::vector<bool> is_lola_;
  int64_t memory_bytes_ = 0;
  int64_t logits_bytes_ = 0;
};

class Session {
 public:
  Session(std::shared_ptr<const Model> model, const SessionConfig& config);

  const std::shared_ptr<const Model>& model() const { return model_; }
  const SessionConfig& config() const { return config_; }
  const SessionLayout& layout() const { return layout_; }
  int64_t position() const { return position_; }  // tokens seen
  // Time that the passes of this session spent in attention, memories included: for benchmarks. On
  // the CPU all of it; a GPU runs behind the host.
  double attention_seconds() const { return attention_seconds_; }
  // [vocabulary], empty before the first token and after a prompt that was interrupted.
  std::span<const float> logits() const;
  // Of these logits, where the backend has chosen; id -1 where it has not.
  GreedyChoice greedy_choice() const { return greedy_; }

  // A copy that continues on its own.
  std::unique_ptr<Session> fork() const;

  // Held by whoever uses the session; UsageError when another thread does.
  std::unique_lock<std::mutex> use() const;

 private:
  friend class Pass;
  friend class StateFile;
  friend class Inspection;

  // Of all layers, neighbours joined.
  std::vector<MemoryRange> used_memory() const;
  std::span<const float> logits(Executor& executor) const;
  void set_logits(std::span<const float> logits, Executor& executor);
  void forget_logits();

  std::shared_ptr<const Model> model_;
  SessionConfig config_;
  SessionLayout layout_;
  Buffer memory_;
  Buffer logits_;  // [vocabulary], of the last token
  int64_t position_ = 0;
  double attention_seconds_ = 0.0;
  bool has_logits_ = false;
  GreedyChoice greedy_{-1, 0.0f};
  mutable std::vector<float> host_logits_;  // empty until asked for
  mutable std::mutex in_use_;
};

}  // namespace lola

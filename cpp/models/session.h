// One conversation: its memories, its position, and the logits after its last token.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "models/found_logits.h"
#include "models/model.h"
#include "models/session_layout.h"
#include "models/session_memory.h"

namespace lola {

class Session {
 public:
  Session(std::shared_ptr<const Model> model, const SessionConfig& config);

  const std::shared_ptr<const Model>& model() const { return model_; }
  const SessionConfig& config() const { return config_; }
  const SessionLayout& layout() const { return layout_; }
  int64_t position() const { return position_; }  // tokens seen
  int64_t memory_bytes() const { return layout_.bytes(memory_.pages() * kKvPageTokens); }
  // Time that the passes of this session spent in attention, memories included: for benchmarks. On
  // the CPU all of it; a GPU runs behind the host.
  double attention_seconds() const { return attention_seconds_; }
  bool has_logits() const { return has_logits_; }
  // [vocabulary], empty before the first token and after a prompt that was interrupted.
  std::span<const float> logits() const;
  // What the backend found in these logits; empty where it has not looked. From the next pass on it
  // looks for the `count` best at least.
  TopLogits top_logits() const { return found_ ? found_->row(found_row_) : TopLogits{}; }
  void want_best(int64_t count) { best_wanted_ = count; }
  // Whether its latest pass is over; and waits for that, or throws what it failed with.
  bool is_over() const { return !found_ || found_->is_read(); }
  void wait() const {
    if (found_) found_->check();
  }

  // A copy that continues on its own.
  std::unique_ptr<Session> fork() const;

  // Moves its memories to host memory and gives back what they took of the devices; the next use
  // brings them back.
  void spill();
  bool spilled() const { return memory_.spilled(); }

  // Held by whoever uses the session; UsageError when another thread does.
  std::unique_lock<std::mutex> use() const;

 private:
  friend class Pass;
  friend class StateFile;
  friend class Inspection;

  // Of the same kind, with nothing in its memory: for fork().
  explicit Session(const Session* like);
  // Ends a spill. DeviceError where there is no room.
  void restore(Workspaces& workspaces);
  std::span<const float> logits(Executor& executor) const;
  void set_logits(std::span<const float> logits, Executor& executor);
  void forget_logits();
  int64_t logits_bytes() const;

  std::shared_ptr<const Model> model_;
  SessionConfig config_;
  SessionLayout layout_;
  SessionMemory memory_;
  int64_t position_ = 0;
  double attention_seconds_ = 0.0;
  bool has_logits_ = false;
  std::shared_ptr<FoundLogits> found_;  // shared by the sessions of a pass; null without logits
  size_t found_row_ = 0;
  int64_t best_wanted_ = 1;
  mutable std::vector<float> host_logits_;  // empty until asked for
  mutable std::mutex in_use_;
};

}  // namespace lola

// Advances sessions over tokens: the one way in for a prompt, a generated token, and a batch of
// either.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "models/pass.h"

namespace lola {

struct Advance {
  Session* session;
  std::span<const int32_t> tokens;
  float* logprobs = nullptr;  // [tokens] or null: log-probability of each token given all before it
  float* hidden = nullptr;    // [tokens, dim] or null: what goes into the output matrix
  const AttentionObserver* observer = nullptr;  // or null
};

// Called between passes (Backend::pass_tokens() at most, and so the longest wait of a cancellation)
// with the tokens done so far, all sessions together; what it throws ends the call, and the
// sessions stay where the finished passes left them.
using Progress = std::function<void(int64_t done)>;

// UsageError where the session cannot take these tokens: ids out of range, or a KV cache too small.
void check_tokens(const Session& session, std::span<const int32_t> tokens);

enum class Return {
  kWhenOver,
  kEarly,  // a GPU may still be at the last pass: whatever needs what it computes waits for it
};

// All sessions are of one model, and none stands twice. Afterwards each holds the logits of its
// last token.
void advance_batch(std::span<const Advance> advances, const Progress& progress,
                   Return when = Return::kWhenOver);

}  // namespace lola

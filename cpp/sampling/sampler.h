// Chooses the next token from logits. Seeded: the same configuration, history and logits give the
// same token on every machine.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sampling/candidates.h"
#include "sampling/recent_tokens.h"

namespace lola {

// In the order in which they act: bias, penalties, then (unless greedy) top-k, top-p, min-p,
// temperature. The filters see probabilities at temperature 1; each sees what the one before it
// kept, renormalised.
struct SamplerConfig {
  double temperature = 0.0;  // 0: greedy
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;
  double min_p = 0.0;  // relative to the most likely token
  double repetition_penalty =
      1.0;  // divides positive and multiplies negative logits of recent tokens
  double frequency_penalty = 0.0;  // subtracted once for each occurrence
  double presence_penalty = 0.0;   // subtracted once
  int64_t penalty_window = 64;     // tokens that the penalties look back on; -1: all
  std::vector<std::pair<int32_t, double>> logit_bias;  // -infinity forbids a token
  uint64_t seed = 0;
};

struct SampledToken {
  int32_t id;
  float logprob;  // under the softmax of the unmodified logits
  std::vector<std::pair<int32_t, float>>
      top;  // the most likely tokens with their log-probabilities, best first
};

// Not to be used by two threads at once. Equal logits count as ordered by their ids, lowest first.
class Sampler {
 public:
  explicit Sampler(
      SamplerConfig config);  // UsageError names the option, what was found and what is wanted

  // Tokens of the prompt, so that penalties see them. sample() records what it returns by itself.
  void accept(std::span<const int32_t> tokens);

  // How many of the best logits sample(TopLogits) should be given; 1 where it has no use for more.
  int64_t candidates() const;

  // What sample() chooses from all logits, from the best of them: the same token, and nothing where
  // they may be too few to tell.
  std::optional<SampledToken> sample(const TopLogits& top, int64_t top_logprobs);

  // logits [vocabulary]; UsageError on NaN, +infinity, or when nothing is left to choose from.
  SampledToken sample(std::span<const float> logits, int64_t top_logprobs);

  // Chooses from `adjusted`, what a grammar or a caller's own rule made of the logits; the
  // log-probabilities stay the model's.
  SampledToken sample(std::span<const float> logits, std::span<const float> adjusted,
                      int64_t top_logprobs);

  const SamplerConfig& config() const { return config_; }

  // Everything that the next sample depends on, for session state files.
  std::vector<uint8_t> save() const;
  static Sampler load(
      std::span<const uint8_t> bytes);  // FormatError on bytes that save() did not write

 private:
  // The logits after bias and penalties; the span itself when neither changes anything.
  std::span<const float> biased(std::span<const float> logits);

  bool changes_logits() const { return !config_.logit_bias.empty() || !recent_.counts().empty(); }
  // The best after bias and penalties, best first, as far as `top` tells: less than all of `top`
  // where others may have come between.
  std::vector<Candidate> biased(const TopLogits& top) const;

  int32_t draw(std::span<const float> logits, const Peaks& peaks);
  std::optional<int32_t> draw(std::vector<Candidate> best, const TopLogits& top);
  int32_t draw_from_all(std::span<const float> logits, float max);
  double next_uniform();

  SamplerConfig config_;
  uint64_t draws_ = 0;  // counter of the counter-based generator; greedy choices do not advance it
  RecentTokens recent_;
  std::vector<float> scratch_;  // [vocabulary] logits after bias and penalties, then weights
};

}  // namespace lola

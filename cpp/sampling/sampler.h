// Chooses the next token from logits. Seeded: the same configuration, history and logits give the same token on every machine.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace lola {

struct SamplerConfig {
  double temperature = 0.0;  // 0: greedy
  int32_t top_k = 0;         // 0: all
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;  // divides positive and multiplies negative logits of recent tokens
  double frequency_penalty = 0.0;   // subtracted once for each occurrence
  double presence_penalty = 0.0;    // subtracted once
  int64_t penalty_window = 64;      // tokens that the penalties look back on; -1: all
  std::vector<std::pair<int32_t, double>> logit_bias;
  uint64_t seed = 0;
};

struct SampledToken {
  int32_t id;
  float logprob;  // under the softmax of the unmodified logits
  std::vector<std::pair<int32_t, float>> top;  // the most likely tokens with their log-probabilities, best first
};

class Sampler {
 public:
  explicit Sampler(SamplerConfig config);  // UsageError names the option, what was found and what is wanted

  // Tokens of the prompt, so that penalties see them. sample() records what it returns by itself.
  void accept(std::span<const int32_t> tokens);

  SampledToken sample(std::span<const float> logits, int top_logprobs);

  const SamplerConfig& config() const { return config_; }

  // Everything that the next sample depends on, for session state files.
  std::vector<uint8_t> save() const;
  static Sampler load(std::span<const uint8_t> bytes);  // FormatError on bytes that save() did not write

 private:
  SamplerConfig config_;
  uint64_t draws_ = 0;             // counter of the counter-based generator
  std::vector<int32_t> history_;   // at most penalty_window tokens
  std::vector<float> scratch_;
};

}  // namespace lola

#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/exp_negative.h"
#include "sampling/candidates.h"

namespace lola {
namespace {

constexpr double kMaxDouble = std::numeric_limits<double>::max();

template <typename Value>
void require(bool good, const char* option, const Value& found, const char* wanted) {
  if (!good) throw UsageError(message(option, ": found ", found, ", wanted ", wanted));
}

void check(const SamplerConfig& config) {
  const auto in = [](double value, double low, double high) {
    return value >= low && value <= high;
  };
  require(in(config.temperature, 0, kMaxDouble), "temperature", config.temperature,
          "0 (greedy) or more");
  require(config.top_k >= 0, "top_k", config.top_k, "0 (all) or more");
  require(in(config.top_p, 0, 1), "top_p", config.top_p, "0 to 1");
  require(in(config.min_p, 0, 1), "min_p", config.min_p, "0 to 1");
  require(in(config.repetition_penalty, std::numeric_limits<double>::min(), kMaxDouble),
          "repetition_penalty", config.repetition_penalty, "more than 0");
  require(in(config.frequency_penalty, -kMaxDouble, kMaxDouble), "frequency_penalty",
          config.frequency_penalty, "a finite number");
  require(in(config.presence_penalty, -kMaxDouble, kMaxDouble), "presence_penalty",
          config.presence_penalty, "a finite number");
  require(config.penalty_window >= -1, "penalty_window", config.penalty_window, "-1 (all) or more");
  for (const auto& [id, bias] : config.logit_bias) {
    require(id >= 0, "logit_bias", id, "token ids of 0 or more");
    require(bias <= kMaxDouble, "logit_bias", bias, "finite numbers or -infinity");
  }
}

bool penalises(const SamplerConfig& config) {
  return config.penalty_window != 0 &&
         (config.repetition_penalty != 1.0 || config.frequency_penalty != 0.0 ||
          config.presence_penalty != 0.0);
}

// The mixing function of SplitMix64: every bit of the result depends on every bit of x.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

float& of_token(std::vector<float>& logits, int32_t id, const char* what) {
  require(static_cast<size_t>(id) < logits.size(), what, id, "the id of a token in the vocabulary");
  return logits[static_cast<size_t>(id)];
}

// Options may push a logit beyond what a float holds; only -infinity keeps its meaning.
float to_logit(double value) {
  constexpr double kMax = std::numeric_limits<float>::max();
  if (value == -std::numeric_limits<double>::infinity()) return static_cast<float>(value);
  return static_cast<float>(std::clamp(value, -kMax, kMax));
}

double penalised(double logit, double count, const SamplerConfig& config) {
  if (logit == -std::numeric_limits<double>::infinity()) return logit;
  logit = logit > 0.0 ? logit / config.repetition_penalty : logit * config.repetition_penalty;
  const double penalty = count * config.frequency_penalty + config.presence_penalty;
  return logit - std::clamp(penalty, -kMaxDouble, kMaxDouble);
}

// Inverse of the cumulative distribution: where the running sum passes `uniform` (in [0, 1)) of the
// total.
size_t pick(std::span<const float> weights, double uniform) {
  double total = 0.0;
  for (const float w : weights) total += w;
  const double target = uniform * total;
  double sum = 0.0;
  size_t last = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0.0f) continue;
    last = i;
    sum += weights[i];
    if (sum > target) break;
  }
  return last;
}

// exp((logit - max) / temperature) of each candidate.
std::vector<float> weights_of(const std::vector<Candidate>& candidates, float max,
                              double temperature) {
  std::vector<float> weights(candidates.size());
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = candidates[i].logit;
  to_weights(weights, max, temperature, 0.0);
  return weights;
}

// Cuts a list, best first, as soon as the weights at temperature 1 sum to `share` of `total`, or of
// those of the list; false where the whole list sums to less.
bool keep_share(std::vector<Candidate>& sorted, double share, std::optional<double> total) {
  const std::vector<float> weights = weights_of(sorted, sorted.front().logit, 1.0);
  if (!total) total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0.0;
  size_t kept = 0;
  do {
    sum += weights[kept++];
  } while (kept < sorted.size() && sum < share * *total);
  sorted.resize(kept);
  return sum >= share * *total;
}

// The shortest run of the best tokens that holds `top_p` of the probability of all, best first.
std::vector<Candidate> nucleus(std::span<const float> logits, const Peaks& peaks, double top_p) {
  const double total = exp_sum(logits, peaks.max);
  // Tokens below (1 - p) / n of the total cannot matter: all of them together hold less than 1 - p.
  // The margin covers rounding, here and in the library's logarithm: a token too many among the
  // candidates changes nothing.
  constexpr double kMargin = 0.1;
  const double share = (1.0 - top_p) / static_cast<double>(logits.size());
  std::vector<Candidate> kept =
      at_least(logits, peaks, static_cast<float>(peaks.max + std::log(share * total) - kMargin));
  sort_best_first(kept);
  keep_share(kept, top_p, total);
  return kept;
}

bool is_below_min_p(const Candidate& candidate, float max, double min_p) {
  return exp_negative(candidate.logit - max) < static_cast<float>(min_p);
}

void keep_min_p(std::vector<Candidate>& sorted, double min_p) {
  const float max = sorted.front().logit;
  while (is_below_min_p(sorted.back(), max, min_p)) sorted.pop_back();
}

}  // namespace

Sampler::Sampler(SamplerConfig config)
    : config_(std::move(config)), recent_(penalises(config_) ? config_.penalty_window : 0) {
  check(config_);
}

void Sampler::accept(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) require(token >= 0, "token", token, "0 or more");
  for (const int32_t token : tokens) recent_.push(token);
}

int64_t Sampler::candidates() const {
  constexpr int64_t kOfShare = 256;  // a nucleus or a min-p set is seldom larger
  constexpr int64_t kMostLost = 64;  // of the best, to penalties
  const auto changed = static_cast<int64_t>(config_.logit_bias.size() + recent_.counts().size());
  const int64_t lost = std::min(changed, kMostLost);
  if (config_.temperature == 0.0) return 1 + lost;
  if (config_.top_k > 0) return config_.top_k + lost <= kMostBest ? config_.top_k + lost : 1;
  const bool shared = config_.top_p < 1.0 && changed == 0;
  return shared || config_.min_p > 0.0 ? kOfShare : 1;
}

std::optional<SampledToken> Sampler::sample(const TopLogits& top, int64_t top_logprobs) {
  const int64_t listed = static_cast<int64_t>(top.best.size());
  if (listed == 0 || top_logprobs < 0 || std::min(top_logprobs, top.vocabulary) > listed) {
    return std::nullopt;
  }
  std::vector<Candidate> best = biased(top);
  if (best.empty()) return std::nullopt;
  const std::optional<int32_t> id =
      config_.temperature == 0.0 ? best.front().id : draw(std::move(best), top);
  if (!id) return std::nullopt;
  const double log_total = std::log(top.total);
  const auto logprob = [&](float logit) {
    return static_cast<float>((static_cast<double>(logit) - top.best.front().logit) - log_total);
  };
  SampledToken token{*id, 0.0f, {}};
  for (const Candidate& candidate : top.best) {
    if (candidate.id == *id) token.logprob = logprob(candidate.logit);
    if (std::ssize(token.top) < top_logprobs) {
      token.top.emplace_back(candidate.id, logprob(candidate.logit));
    }
  }
  recent_.push(token.id);
  return token;
}

SampledToken Sampler::sample(std::span<const float> logits, int64_t top_logprobs) {
  return sample(logits, logits, top_logprobs);
}

SampledToken Sampler::sample(std::span<const float> logits, std::span<const float> adjusted,
                             int64_t top_logprobs) {
  require(top_logprobs >= 0, "top_logprobs", top_logprobs, "0 or more");
  require(adjusted.size() == logits.size(), "adjusted logits", adjusted.size(),
          "as many as the model has");
  const Peaks model_peaks = find_peaks(logits);
  const float model_max = model_peaks.max;
  const double log_total = std::log(exp_sum(logits, model_max));
  const auto logprob = [&](float logit) {
    return static_cast<float>((static_cast<double>(logit) - model_max) - log_total);
  };
  const std::span<const float> changed = biased(adjusted);
  const Peaks peaks = changed.data() == logits.data() ? model_peaks : find_peaks(changed);

  SampledToken token;
  token.id = config_.temperature == 0.0 ? greatest(changed, peaks) : draw(changed, peaks);
  token.logprob = logprob(logits[static_cast<size_t>(token.id)]);
  for (const Candidate& candidate : best(logits, model_peaks, top_logprobs)) {
    token.top.emplace_back(candidate.id, logprob(candidate.logit));
  }
  recent_.push(token.id);
  return token;
}

std::span<const float> Sampler::biased(std::span<const float> logits) {
  if (!changes_logits()) return logits;
  scratch_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : config_.logit_bias) {
    float& logit = of_token(scratch_, id, "logit_bias");
    logit = to_logit(logit + bias);
  }
  for (const auto& [id, count] : recent_.counts()) {
    float& logit = of_token(scratch_, id, "accepted token");
    logit = to_logit(penalised(logit, static_cast<double>(count), config_));
  }
  return scratch_;
}

std::vector<Candidate> Sampler::biased(const TopLogits& top) const {
  std::vector<Candidate> best(top.best.begin(), top.best.end());
  if (!changes_logits()) return best;
  // Tokens that are not listed have this logit at most; those listed without a change stand before
  // them.
  const float least = std::ssize(best) == top.vocabulary ? -std::numeric_limits<float>::infinity()
                                                         : best.back().logit;
  std::map<int32_t, Candidate*> listed;
  for (Candidate& candidate : best) listed.emplace(candidate.id, &candidate);
  std::vector<Candidate*> lowered;
  const auto change = [&](int32_t id, bool raises, const auto& changed) {
    const auto found = listed.find(id);
    if (id >= top.vocabulary || (raises && found == listed.end())) return false;
    if (found == listed.end()) return true;
    found->second->logit = to_logit(changed(found->second->logit));
    lowered.push_back(found->second);
    return true;
  };
  for (const auto& entry : config_.logit_bias) {  // clang 14 captures no structured binding
    const auto add = [&](float logit) { return logit + entry.second; };
    if (!change(entry.first, entry.second > 0.0, add)) return {};
  }
  for (const auto& [id, count] : recent_.counts()) {
    const auto times = static_cast<double>(count);
    const bool raises = config_.repetition_penalty < 1.0 ||
                        times * config_.frequency_penalty + config_.presence_penalty < 0.0;
    if (!change(id, raises, [&](float logit) { return penalised(logit, times, config_); })) {
      return {};
    }
  }
  for (Candidate* candidate : lowered) {
    if (candidate->logit <= least) candidate->id = -1;
  }
  std::erase_if(best, [](const Candidate& candidate) { return candidate.id < 0; });
  std::sort(best.begin(), best.end(), better);
  return best;
}

int32_t Sampler::draw(std::span<const float> logits, const Peaks& peaks) {
  const float max = peaks.max;
  const bool limited = config_.top_k > 0 && config_.top_k < static_cast<int64_t>(logits.size());
  if (!limited && config_.top_p == 1.0) return draw_from_all(logits, max);
  std::vector<Candidate> candidates =
      limited ? best(logits, peaks, config_.top_k) : nucleus(logits, peaks, config_.top_p);
  if (limited && config_.top_p < 1.0) keep_share(candidates, config_.top_p, std::nullopt);
  keep_min_p(candidates, config_.min_p);
  const std::vector<float> weights = weights_of(candidates, max, config_.temperature);
  return candidates[pick(weights, next_uniform())].id;
}

// As from all logits: `best` begins the order in which that would see them.
std::optional<int32_t> Sampler::draw(std::vector<Candidate> best, const TopLogits& top) {
  const float max = best.front().logit;
  const bool all = std::ssize(best) == top.vocabulary;
  const bool ends = all || is_below_min_p(best.back(), max, config_.min_p);  // nothing follows
  const bool limited = config_.top_k > 0 && config_.top_k < top.vocabulary;
  if (limited) {
    const auto k = static_cast<size_t>(config_.top_k);
    if (best.size() < k && (config_.top_p < 1.0 || !ends)) return std::nullopt;
    if (best.size() > k) best.resize(k);
    if (config_.top_p < 1.0) keep_share(best, config_.top_p, std::nullopt);
  } else if (config_.top_p < 1.0) {
    if (changes_logits()) return std::nullopt;  // the total of the changed logits is not known
    if (!keep_share(best, config_.top_p, top.total) && !ends) return std::nullopt;
  } else if (!ends) {
    return std::nullopt;
  }
  keep_min_p(best, config_.min_p);
  if (!limited && config_.top_p == 1.0) {
    std::sort(best.begin(), best.end(), [](auto& a, auto& b) { return a.id < b.id; });
  }
  const std::vector<float> weights = weights_of(best, max, config_.temperature);
  return best[pick(weights, next_uniform())].id;
}

int32_t Sampler::draw_from_all(std::span<const float> logits, float max) {
  if (logits.data() != scratch_.data()) scratch_.assign(logits.begin(), logits.end());
  to_weights(scratch_, max, config_.temperature, config_.min_p);
  return static_cast<int32_t>(pick(scratch_, next_uniform()));
}

double Sampler::next_uniform() {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
  const uint64_t key = mix(config_.seed + kGolden);
  const uint64_t bits = mix(key + ++draws_ * kGolden);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace lola

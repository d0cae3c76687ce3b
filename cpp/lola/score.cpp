#include "lola/score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lola/hidden_state.h"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// errors [count]: SRE(k, v | Hs, s) = || phi(k)'Hs / (phi(k)'s) - v ||^2; the recall is 0 while s =
// 0. phi [count, feature_size] is the query head's.
void recall_errors(const KvHead& head, int64_t query_head, const Candidates& pairs,
                   const float* phi, int64_t absorbed, float* errors) {
  const AttentionShape& shape = head.layer.shape;
  const int64_t d = shape.head_dim;
  const bool after = head.config.policy->recall_from == RecallFrom::kStateAfter;
  if (absorbed == 0 && !after) {
    for (int64_t i = 0; i < pairs.count; ++i)
      errors[i] = head.kernels.dot(pairs.v + i * d, pairs.v + i * d, d);
    return;
  }
  HiddenState hidden = head.hidden_state(query_head);
  float* copy = head.scratch.state.get(shape.feature_size * (d + 1));
  if (after) {
    hidden = imagine_absorbed(head.kernels, shape, hidden, phi, pairs.v, pairs.count, copy);
  } else if (hidden.pending_state != nullptr) {
    hidden = merge_pending(head.kernels, shape, hidden, copy);
  }
  float* memory = head.scratch.linear.get(linear_sums_size(pairs.count, d));
  const LinearSums recall =
      read_hidden_state(head.kernels, shape, hidden, phi, pairs.count, memory);
  for (int64_t i = 0; i < pairs.count; ++i) {
    head.kernels.scale(recall.y + i * d, d, 1.0f / recall.sum[i]);
    errors[i] = head.kernels.squared_distance(recall.y + i * d, pairs.v + i * d, d);
  }
}

// scores [count] become the larger of themselves and the query head's own scores.
void raise_to_head_scores(const KvHead& head, int64_t query_head, const Candidates& pairs,
                          const float* phi, int64_t seen, int64_t absorbed, float* scores) {
  const CachePolicy& policy = *head.config.policy;
  const int64_t d = head.head_dim();
  float* errors = head.scratch.head_scores.get(pairs.count);
  std::fill_n(errors, pairs.count, 0.0f);
  if (policy.recall_from != RecallFrom::kNothing)
    recall_errors(head, query_head, pairs, phi, absorbed, errors);
  for (int64_t i = 0; i < pairs.count; ++i) {
    const float* key = pairs.k + i * d;
    const PairFacts facts{.recall_error = errors[i],
                          .key_norm2 = head.kernels.dot(key, key, d),
                          .kappa = head.layer.kappa[query_head],
                          .head_dim = static_cast<int32_t>(d),
                          .position = pairs.position[i],
                          .age = seen - pairs.position[i],
                          .head = query_head,
                          .seed = head.config.seed};
    const float score = policy.score(facts);
    if (score > scores[i]) scores[i] = score;  // never true of a NaN
  }
}

}  // namespace

void map_for_owner(const KvHead& head, int64_t owner, const float* k, int64_t count, float* phi) {
  const FeatureMap& map = head.layer.feature_map;
  const int64_t d = head.head_dim();
  const int64_t first = head.first_query_head() + owner * head.heads_per_owner();
  for (int64_t i = 0; i < head.heads_per_owner(); ++i) {
    const float* weight = head.layer.key_map + (first + i) * map.map_size * d;
    map_features(head.kernels, map, weight, k, d, count, d,
                 phi + i * count * head.layer.shape.feature_size);
  }
}

void score_pairs(const KvHead& head, int64_t owner, const Candidates& pairs, int64_t seen,
                 int64_t absorbed, float* scores) {
  std::fill_n(scores, pairs.count, kMinusInfinity);
  const int64_t first = head.first_query_head() + owner * head.heads_per_owner();
  for (int64_t i = 0; i < head.heads_per_owner(); ++i) {
    const float* phi = pairs.phi + i * pairs.count * head.layer.shape.feature_size;
    raise_to_head_scores(head, first + i, pairs, phi, seen, absorbed, scores);
  }
}

void choose_kept(const float* scores, int64_t count, int64_t capacity,
                 ScratchArray<int64_t>& ranking_memory, uint8_t* kept) {
  int64_t* ranking = ranking_memory.get(count);
  for (int64_t i = 0; i < count; ++i) ranking[i] = i;
  const auto outranks = [scores](int64_t a, int64_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  };
  std::nth_element(ranking, ranking + capacity, ranking + count, outranks);
  std::fill_n(kept, count, uint8_t{0});
  for (int64_t i = 0; i < capacity; ++i) kept[ranking[i]] = 1;
}

}  // namespace lola

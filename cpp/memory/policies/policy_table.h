// The table of cache policies. Who stays in the sparse cache: the pairs with the largest scores,
// among equals the older. To add a policy: one header beside this file with its score, one row
// here.
#pragma once

#include <string_view>

#include "memory/policies/first.h"
#include "memory/policies/pair_facts.h"
#include "memory/policies/random.h"
#include "memory/policies/recent.h"
#include "memory/policies/self_recall.h"
#include "memory/policies/weighted_recall.h"

namespace lola {

// The hidden state that PairFacts::recall_error is taken against.
enum class RecallFrom {
  kNothing,      // the score does not need it
  kStateBefore,  // as it is before the boundary's absorption
  kStateAfter,   // as it would be with all eligible pairs absorbed
};

struct CachePolicy {
  const char* name;
  RecallFrom recall_from;
  float (*score)(const PairFacts& pair);  // null: no sparse cache at all
};

inline constexpr CachePolicy kCachePolicies[] = {
    {"none", RecallFrom::kNothing, nullptr},  // plain LoLCATs
    {"first", RecallFrom::kNothing, score_first},
    {"recent", RecallFrom::kNothing, score_recent},
    {"random", RecallFrom::kNothing, score_random},
    {"self_recall", RecallFrom::kStateBefore, score_self_recall},
    {"weighted_recall", RecallFrom::kStateBefore, score_weighted_recall},
    {"self_recall_after", RecallFrom::kStateAfter, score_self_recall},
};

// UsageError, listing the names, when there is no such policy.
const CachePolicy& find_policy(std::string_view name);

}  // namespace lola

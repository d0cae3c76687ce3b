// How hard pairs are to recall, and which of them stay exact.
#pragma once

#include <cstdint>

#include "lola/lola_layer.h"

namespace lola {

// Pairs that compete for an owner's sparse cache, oldest first.
struct Candidates {
  const float* k;           // [count, head_dim]
  const float* v;           // [count, head_dim]
  const float* phi;         // their features for the owner's query heads, as map_for_owner() gives
  const int64_t* position;  // [count]
  int64_t count;
};

// phi [heads of the owner, count, feature_size] of k [count, head_dim].
void map_for_owner(const KvHead& head, int64_t owner, const float* k, int64_t count, float* phi);

// scores [count] of the owner's candidates by the session's policy; larger stays. Where several
// query heads share the cache, a pair's score is the largest over them. A score that is not a
// number counts as -inf, so that the order is total. seen: tokens so far; absorbed: pairs in the
// hidden states.
void score_pairs(const KvHead& head, int64_t owner, const Candidates& pairs, int64_t seen,
                 int64_t absorbed, float* scores);

// kept [count] = 1 for the `capacity` largest scores (among equals the older pair), 0 for the
// others.
void choose_kept(const float* scores, int64_t count, int64_t capacity,
                 ScratchArray<int64_t>& ranking, uint8_t* kept);

}  // namespace lola

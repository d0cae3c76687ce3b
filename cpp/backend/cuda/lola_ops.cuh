// LoLA attention on the GPU: kernels for one piece of a pass, and for the chunk boundary after it.
// The rules are those of cpp/lola; how many pairs are where is worked out on the host
// (lola_plan.h).
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/elementwise.cuh"
#include "backend/cuda/lola_plan.h"
#include "backend/cuda/pair_ring.cuh"
#include "lola/feature_map.h"

namespace lola {

// One layer: where its memories lie in a session's bytes, and its learned parts. The ring is the
// sliding window.
struct LolaView : PairRing {
  int64_t cache_k, cache_v, cache_position, cache_score;
  int64_t state, sum;
  int64_t pending_state, pending_sum;  // -1 where there are none
  int64_t sparse_capacity;
  int features;
  bool head_scope, affine;
  Mixing mixing;
  uint64_t seed;
  FeatureMap map;
  const float* query_map;
  const float* key_map;
  const float* gate;
  const float* kappa;

  __host__ __device__ int owners() const { return head_scope ? heads : kv_heads; }
  __host__ __device__ int owner_of(int head) const { return head_scope ? head : head / group; }
};

// offset: of the layer in the session's memory.
LolaView lola_view(const LolaLayer& layer, const LolaConfig& config,
                   const LayerMemoryLayout& layout, int64_t offset);

// Outputs of the pieces' queries, and their copies, which are not rounded.
void lola_attend(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                 const AttentionRows& rows, const ProductCopy& copy);

// Whether single queries have kernels of their own, which all their exact pairs fit.
bool answers_one(const LolaView& view);

// Memory of lola_attend_one().
struct OneScratch {
  float* features;     // phi of the queries [pieces, heads, features]
  float* partials;     // what the blocks that share a query leave for the last of them
  unsigned* counters;  // zero between kernels
};
struct OneSizes {
  int64_t features, partials, counters;
};
OneSizes one_sizes(const LolaView& view, int64_t pieces, int multiprocessors);

// Of pieces of one token: rotates q in place and k, maps the queries, appends the pairs. features:
// of OneScratch.
void prepare_queries(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                     const AttentionRows& rows, const RopeRows& rope, float* features);

// Their outputs, once prepared; the copies are rounded where rounds_heads().
void lola_attend_one(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                     const AttentionRows& rows, const ProductCopy& copy, int multiprocessors,
                     const OneScratch& scratch);

// Memory that boundaries share, for `boundaries` of them at a time.
struct BoundaryScratch {
  float* features;     // phi of every eligible pair [boundaries, heads, most, features]
  float* values;       // [boundaries, owners, most, head_dim]
  float* head_scores;  // [boundaries, heads, most]
  float* scores;       // [boundaries, owners, most]
  int* kept;           // eligible pairs that stay exact, in order [boundaries, owners, most]
  int* lost;           // the others [boundaries, owners, most]
  int* lost_count;     // [boundaries, owners]
  float* imagined;     // hidden states and sums with all absorbed [boundaries, heads, features,
                       // head_dim + 1]
  int64_t most;        // pairs that can be eligible: the sparse cache and a chunk
};

// Bytes of one boundary's share.
int64_t boundary_scratch_bytes(const LolaView& view, int64_t most);
BoundaryScratch boundary_scratch(const LolaView& view, int64_t most, int64_t boundaries,
                                 uint8_t* memory);

// Features and scores of the pairs that are eligible at the boundaries; changes no memory of a
// session.
void score_boundaries(const Stream& stream, const LolaView& view, const CachePolicy& policy,
                      const BoundarySpan& boundaries, const BoundaryScratch& scratch);

// Pairs leave the windows for the sparse caches or the hidden states, by their scores.
void settle_boundaries(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                       const BoundaryScratch& scratch);

}  // namespace lola

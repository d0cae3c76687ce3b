// LoLA attention on the GPU: kernels for single queries, and for the runs of a pass (lola_plan.h).
// The rules are those of cpp/lola; how many pairs are where is worked out on the host.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/cuda_device.cuh"
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
// The same for many pieces, which share what is read of the map.
void prepare_many(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                  const AttentionRows& rows, const RopeRows& rope, float* features);

// Their outputs, once prepared; the copies are rounded where rounds_heads().
void lola_attend_one(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                     const AttentionRows& rows, const ProductCopy& copy, int multiprocessors,
                     const OneScratch& scratch);

// All of it in one kernel, where one session is there to fill the GPU and what its query reads fits
// the shared memory of some blocks. To be asked before.
bool answers_in_cluster(const CudaDevice& device, const LolaView& view, const PieceSpan& pieces);
void lola_attend_cluster(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                         const AttentionRows& rows, const RopeRows& rope, const ProductCopy& copy);

// What owners note of each eligible pair while they choose, and for how many there is room.
constexpr int kChoice = 3;
__host__ __device__ constexpr int64_t padded_choice(int64_t pairs) {
  return (pairs + 31) / 32 * 32;
}

// Memory that a run shares. Features have feature_stride() floats, the last of them zeros.
struct RunScratch {
  uint8_t *pass_k, *pass_v;  // the pass's pairs [kv_heads, tokens, row_bytes]
  float* query_features;     // [heads, tokens, stride]
  float* key_features;       // of the pairs eligible in the run [heads, rows, stride]
  float* key_norms;          // their squares [heads, rows]
  float* head_scores;        // [boundaries, heads, most]
  int* choice;               // [boundaries, owners, kChoice, padded_choice(most)], where blocks
                             // have no room
  uint64_t* words;           // [chain_words()], of pass_chain()
  float* imagined;           // hidden states with all absorbed [boundaries, heads, state_floats]
  int* caches;               // numbers of the pairs that stay exact [versions, owners, capacity]
  float* scores;             // theirs [versions, owners, capacity]
  float* states;             // [versions, heads, state_floats]
  int64_t tokens;            // of the pass
  int64_t rows;
  int64_t most;        // pairs that can be eligible at a boundary: the sparse cache and a chunk
  unsigned* counters;  // [boundaries, owners], zero between kernels
};

// What of it a run needs.
struct RunSizes {
  int64_t tokens;  // of the pass; 0 where only boundaries are passed
  int64_t rows, most;
  int64_t boundaries;  // at once
  int64_t versions;
  int64_t states;    // versions of the hidden states
  int64_t imagined;  // hidden states
};

RunSizes run_sizes(const LolaView& view, const PlanRun& run, const LolaConfig& config,
                   int64_t tokens);
// Lays it out from `memory` on; returns its bytes.
int64_t run_scratch(const LolaView& view, const RunSizes& sizes, uint8_t* memory,
                    RunScratch& scratch);

// How the pass's pairs lie from scratch.pass_k on.
PairRing pass_pairs(const LolaView& view, const RunScratch& scratch);

// phi of the queries of tasks that read hidden states.
void map_queries(const Stream& stream, const LolaView& view, const PieceSpan& tasks,
                 const AttentionRows& rows, const RunScratch& scratch);
// phi and norms of the keys that are eligible.
void map_keys(const Stream& stream, const LolaView& view, const ChainSpan& chains,
              int64_t most_pairs, const RunScratch& scratch);

// Outputs of the pieces' queries, and their copies, which are not rounded.
void lola_attend(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                 const AttentionRows& rows, const ProductCopy& copy, const RunScratch& scratch);

// Boundaries of different sessions: pairs leave the windows for the sparse caches or the hidden
// states, in new versions of these.
void pass_boundaries(const Stream& stream, const LolaView& view, const CachePolicy& policy,
                     const BoundarySpan& boundaries, const RunScratch& scratch);

// The same with their keys mapped too, where nobody reads what the sessions remembered before: they
// remember the new versions at once. False where there are no kernels for such pairs, features, or
// a GPU. Reads scratch.counters.
bool pass_in_place(const CudaDevice& device, const Stream& stream, const LolaView& view,
                   const CachePolicy& policy, const BoundarySpan& boundaries,
                   const RunScratch& scratch);
// The same of several boundaries of one session, each after the one before, in one kernel; false
// where it has no room for them.
bool pass_chain(const Stream& stream, const LolaView& view, const CachePolicy& policy,
                const BoundarySpan& boundaries, const RunScratch& scratch);
// Of the memory in which its blocks tell each other what they find.
inline int64_t chain_words(const LolaView& view, int64_t most) {
  return int64_t{2} * view.heads * ceil_div(view.head_dim, kGroupColumns) * most;
}

// The last versions of a run become what the sessions remember.
void keep_versions(const Stream& stream, const LolaView& view, const ChainSpan& chains,
                   const RunScratch& scratch);

}  // namespace lola

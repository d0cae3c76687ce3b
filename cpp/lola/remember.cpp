#include "lola/remember.h"

#include <algorithm>
#include <cstring>

#include "lola/hidden_state.h"
#include "lola/pair_rows.h"
#include "lola/score.h"
#include "lola/sliding_window.h"

namespace lola {
namespace {

// Who takes part in a boundary: the owner's sparse cache, and the pairs leaving the window. Oldest
// first.
struct Eligible {
  int64_t cached;
  int64_t leaving;
  int64_t first_leaving;  // position
  int64_t absorbed;       // pairs in the hidden state before the boundary

  int64_t count() const { return cached + leaving; }
};

Eligible eligible_at(const LolaConfig& config, int64_t seen) {
  const int64_t last_boundary = seen - config.chunk_size;
  const int64_t first_leaving = window_begin(config, last_boundary);
  const MemoryCounts before = counts_at(config, last_boundary);
  return {before.cache, window_begin(config, seen) - first_leaving, first_leaving, before.absorbed};
}

// keys and values [count, head_dim], position [count] of the owner's eligible pairs.
void load_eligible(const KvHead& head, int64_t owner, const Eligible& eligible, float* keys,
                   float* values, int64_t* position) {
  const int64_t d = head.head_dim();
  if (eligible.cached > 0) {
    const SparseCache cache = head.sparse_cache(owner);
    load_pairs(head.kernels, head.config.pair_type, cache.k, eligible.cached * d, keys);
    load_pairs(head.kernels, head.config.pair_type, cache.v, eligible.cached * d, values);
    std::memcpy(position, cache.position, static_cast<size_t>(eligible.cached) * sizeof(int64_t));
  }
  load_window(head, eligible.first_leaving, eligible.leaving, keys + eligible.cached * d,
              values + eligible.cached * d);
  for (int64_t i = 0; i < eligible.leaving; ++i)
    position[eligible.cached + i] = eligible.first_leaving + i;
}

// The kept pairs, as they are stored, become the owner's sparse cache. They keep their order, so a
// pair only ever moves to a place at or before its own.
void rewrite_cache(const KvHead& head, int64_t owner, const Eligible& eligible, const uint8_t* kept,
                   const float* scores, const int64_t* position) {
  const SparseCache cache = head.sparse_cache(owner);
  const SlidingWindow window = head.window();
  const size_t row_bytes = static_cast<size_t>(head.layout.row_bytes());
  int64_t place = 0;
  for (int64_t i = 0; i < eligible.count(); ++i) {
    if (kept[i] == 0) continue;
    const bool was_cached = i < eligible.cached;
    const int64_t from = (was_cached ? i : position[i] % window.capacity) * head.layout.row_bytes();
    const int64_t to = place * head.layout.row_bytes();
    if (!was_cached || place != i) {
      std::memcpy(cache.k + to, (was_cached ? cache.k : window.k) + from, row_bytes);
      std::memcpy(cache.v + to, (was_cached ? cache.v : window.v) + from, row_bytes);
    }
    cache.position[place] = position[i];
    cache.score[place] = scores[i];
    ++place;
  }
}

// Moves the rows [count, width] of pairs that are not kept to the front; returns their number.
int64_t gather_losers(const uint8_t* kept, int64_t count, int64_t width, float* rows) {
  int64_t losers = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (kept[i] != 0) continue;
    if (losers != i) std::copy_n(rows + i * width, width, rows + losers * width);
    ++losers;
  }
  return losers;
}

// Every query head of the owner absorbs the pairs that are not kept. phi [heads of the owner,
// count, feature_size] and values [count, head_dim] are used up.
void absorb_losers(const KvHead& head, int64_t owner, const Eligible& eligible, const uint8_t* kept,
                   float* phi, float* values) {
  const AttentionShape& shape = head.layer.shape;
  const int64_t count = eligible.count();
  const int64_t losers = gather_losers(kept, count, shape.head_dim, values);
  const int64_t first = head.first_query_head() + owner * head.heads_per_owner();
  for (int64_t i = 0; i < head.heads_per_owner(); ++i, phi += count * shape.feature_size) {
    gather_losers(kept, count, shape.feature_size, phi);
    absorb(head.kernels, shape, head.hidden_state(first + i), phi, values, losers,
           eligible.absorbed);
  }
}

}  // namespace

void pass_boundary(const KvHead& head, int64_t seen) {
  const Eligible eligible = eligible_at(head.config, seen);
  if (eligible.leaving == 0) return;
  const int64_t count = eligible.count();
  const int64_t capacity = sparse_capacity(head.config);
  LolaScratch& scratch = head.scratch;
  float* keys = scratch.keys.get(count * head.head_dim());
  float* values = scratch.values.get(count * head.head_dim());
  int64_t* position = scratch.positions.get(count);
  float* scores = scratch.scores.get(count);
  uint8_t* kept = scratch.kept.get(count);
  float* phi = scratch.features.get(head.heads_per_owner() * count * head.layer.shape.feature_size);
  const bool all_fit = count <= capacity;
  for (int64_t owner = 0; owner < head.owners(); ++owner) {
    load_eligible(head, owner, eligible, keys, values, position);
    std::fill_n(scores, count, 0.0f);
    std::fill_n(kept, count, uint8_t{all_fit});
    if (!all_fit) map_for_owner(head, owner, keys, count, phi);
    if (!all_fit && capacity > 0) {
      score_pairs(head, owner, {keys, values, phi, position, count}, seen, eligible.absorbed,
                  scores);
      choose_kept(scores, count, capacity, scratch.ranking, kept);
    }
    if (capacity > 0) rewrite_cache(head, owner, eligible, kept, scores, position);
    if (!all_fit) absorb_losers(head, owner, eligible, kept, phi, values);
  }
}

}  // namespace lola

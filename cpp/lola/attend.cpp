#include "lola/attend.h"

#include <algorithm>
#include <cmath>

#include "lola/exact_sums.h"
#include "lola/hidden_state.h"
#include "lola/mixing.h"

namespace lola {
namespace {

// The window is a ring: its pairs lie in one run or two.
void add_window(const KvHead& head, const QueryBlock& queries, int64_t position,
                const ExactSums& sums) {
  const SlidingWindow window = head.window();
  const int64_t row_bytes = head.layout.row_bytes();
  const int64_t end = position + queries.tokens;
  for (int64_t begin = window_begin(head.config, position); begin < end;) {
    const int64_t slot = begin % window.capacity;
    const int64_t count = std::min(end - begin, window.capacity - slot);
    const PairRun run{head.config.pair_type,
                      window.k + slot * row_bytes,
                      window.v + slot * row_bytes,
                      row_bytes,
                      count,
                      position + 1 - begin};
    add_pairs(head.kernels, queries, run, sums, head.scratch);
    begin += count;
  }
}

// Each owner's cache is read by its own query heads only.
void add_sparse_caches(const KvHead& head, const QueryBlock& queries, int64_t cached,
                       const ExactSums& sums) {
  const int64_t heads = head.heads_per_owner();
  const int64_t rows = heads * queries.tokens;
  const int64_t d = queries.head_dim;
  for (int64_t owner = 0; cached > 0 && owner < head.owners(); ++owner) {
    const int64_t first = owner * rows;
    const QueryBlock block{queries.q + first * d, heads, queries.tokens, d};
    const ExactSums part{sums.max + first, sums.sum + first, sums.y + first * d};
    const SparseCache cache = head.sparse_cache(owner);
    const PairRun run{head.config.pair_type,   cache.k, cache.v,
                      head.layout.row_bytes(), cached,  cached};
    add_pairs(head.kernels, block, run, part, head.scratch);
  }
}

// The linear term of one query head; q [tokens, head_dim], not scaled.
LinearSums add_hidden_state(const KvHead& head, int64_t query_head, const float* q,
                            int64_t tokens) {
  const AttentionShape& shape = head.layer.shape;
  const FeatureMap& map = head.layer.feature_map;
  const float* weight = head.layer.query_map + query_head * map.map_size * shape.head_dim;
  float* phi = head.scratch.features.get(tokens * shape.feature_size);
  map_features(head.kernels, map, weight, q, shape.head_dim, tokens, shape.head_dim, phi);
  float* memory = head.scratch.linear.get(linear_sums_size(tokens, shape.head_dim));
  return read_hidden_state(head.kernels, shape, head.hidden_state(query_head), phi, tokens, memory);
}

// y = (exact sum + linear sum) / (their weights' sum).
void normalise(MixingWeights weights, float exact_sum, const float* exact_y, float linear_sum,
               const float* linear_y, int64_t head_dim, float* out) {
  const float sum = weights.exact * exact_sum + weights.linear * linear_sum;
  const float exact = weights.exact / sum;
  const float linear = weights.linear / sum;
  for (int64_t i = 0; i < head_dim; ++i) out[i] = exact * exact_y[i] + linear * linear_y[i];
}

}  // namespace

void attend(const KvHead& head, const float* q, int64_t q_stride, int64_t tokens, int64_t position,
            float* out, int64_t out_stride) {
  const MemoryCounts counts = counts_at(head.config, position);
  const int64_t d = head.head_dim();
  const int64_t rows = head.group_size() * tokens;
  float* queries = head.scratch.queries.get(2 * rows * d);
  float* scaled = queries + rows * d;
  gather_queries(head.layer.shape, head.index, q, q_stride, tokens, queries);
  std::copy(queries, queries + rows * d, scaled);
  head.kernels.scale(scaled, rows * d, 1.0f / std::sqrt(static_cast<float>(d)));

  const QueryBlock block{scaled, head.group_size(), tokens, d};
  const ExactSums exact =
      start_exact_sums(head.scratch.exact.get(exact_sums_size(rows, d)), rows, d);
  add_window(head, block, position, exact);
  add_sparse_caches(head, block, counts.cache, exact);
  if (counts.absorbed == 0)
    return write_softmax(head.layer.shape, head.index, tokens, exact, out, out_stride);

  for (int64_t i = 0; i < head.group_size(); ++i) {
    const int64_t query_head = head.first_query_head() + i;
    float* head_out = out + query_head * d;
    const LinearSums linear = add_hidden_state(head, query_head, queries + i * tokens * d, tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t row = i * tokens + t;
      normalise(mixing_weights(head.config.mixing, head.config.affine, head.layer.gate[query_head],
                               exact.max[row]),
                exact.sum[row], exact.y + row * d, linear.sum[t], linear.y + t * d, d,
                head_out + t * out_stride);
    }
  }
}

}  // namespace lola

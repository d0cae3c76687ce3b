#include "lola/exact_sums.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "lola/pair_rows.h"

namespace lola {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Pairs that many queries multiply at a time: the tile, converted, and its logits stay in the
// second-level cache.
constexpr int64_t kTilePairs = 128;

// So few queries (those of one token, mostly) read pairs where they lie: converting one costs them
// no more than loading it converted. Their tiles are longer, since only the logits are kept.
constexpr int64_t kFewQueries = 12;
constexpr int64_t kFewQueriesTilePairs = 512;

// Turns one query's logits into soft weights relative to the new maximum, and the sums so far with
// them.
void weigh_row(const Kernels& kernels, float* logits, int64_t visible, int64_t count,
               int64_t head_dim, float* max, float* sum, float* y) {
  std::fill(logits + visible, logits + count, 0.0f);
  if (visible == 0) return;
  const float new_max = std::max(*max, kernels.max(logits, visible));
  if (new_max > *max) {
    const float rescale = std::exp(*max - new_max);
    *sum *= rescale;
    kernels.scale(y, head_dim, rescale);
    *max = new_max;
  }
  *sum += kernels.exp_shift(logits, visible, new_max);
}

// Logits [heads * tokens, count] become soft weights.
void weigh_rows(const Kernels& kernels, const QueryBlock& queries, const PairRun& tile,
                const ExactSums& sums, float* logits) {
  for (int64_t row = 0; row < queries.heads * queries.tokens; ++row) {
    const int64_t visible = std::clamp<int64_t>(tile.visible + row % queries.tokens, 0, tile.count);
    weigh_row(kernels, logits + row * tile.count, visible, tile.count, queries.head_dim,
              sums.max + row, sums.sum + row, sums.y + row * queries.head_dim);
  }
}

void add_stored_tile(const Kernels& kernels, const QueryBlock& queries, const PairRun& tile,
                     const ExactSums& sums, LolaScratch& scratch) {
  const int64_t rows = queries.heads * queries.tokens;
  const int64_t n = tile.count;
  const int64_t d = queries.head_dim;
  float* logits = scratch.logits.get(rows * n);
  const auto add = [&](auto multiply, auto mix, auto k, auto v) {
    multiply(rows, n, d, queries.q, d, k, d, logits, n);
    weigh_rows(kernels, queries, tile, sums, logits);
    mix(rows, d, n, logits, n, v, d, sums.y, d);
  };
  switch (tile.type) {
    case PairType::kF32:
      return add(kernels.gemm_nt, kernels.gemm_nn, reinterpret_cast<const float*>(tile.k),
                 reinterpret_cast<const float*>(tile.v));
    case PairType::kF16:
      return add(kernels.gemm_nt_f16, kernels.gemm_nn_f16,
                 reinterpret_cast<const uint16_t*>(tile.k),
                 reinterpret_cast<const uint16_t*>(tile.v));
    case PairType::kQ8_0:
      return add(kernels.gemm_nt_q8_0, kernels.gemm_nn_q8_0, tile.k, tile.v);
  }
}

// For many queries, which would convert each pair again and again.
void add_loaded_tile(const Kernels& kernels, const QueryBlock& queries, const PairRun& tile,
                     const ExactSums& sums, LolaScratch& scratch) {
  const int64_t values = tile.count * queries.head_dim;
  float* k = scratch.keys.get(values);
  float* v = scratch.values.get(values);
  load_pairs(kernels, tile.type, tile.k, values, k);
  load_pairs(kernels, tile.type, tile.v, values, v);
  const PairRun loaded{PairType::kF32,
                       reinterpret_cast<const uint8_t*>(k),
                       reinterpret_cast<const uint8_t*>(v),
                       queries.head_dim * static_cast<int64_t>(sizeof(float)),
                       tile.count,
                       tile.visible};
  add_stored_tile(kernels, queries, loaded, sums, scratch);
}

}  // namespace

ExactSums start_exact_sums(float* memory, int64_t rows, int64_t head_dim) {
  std::fill(memory, memory + rows, kMinusInfinity);
  std::fill(memory + rows, memory + exact_sums_size(rows, head_dim), 0.0f);
  return {memory, memory + rows, memory + 2 * rows};
}

void add_pairs(const Kernels& kernels, const QueryBlock& queries, const PairRun& pairs,
               const ExactSums& sums, LolaScratch& scratch) {
  const bool few = queries.heads * queries.tokens <= kFewQueries;
  const int64_t tile = few ? kFewQueriesTilePairs : kTilePairs;
  for (int64_t begin = 0; begin < pairs.count; begin += tile) {
    const PairRun part = pairs.part(begin, std::min(tile, pairs.count - begin));
    if (few) {
      add_stored_tile(kernels, queries, part, sums, scratch);
    } else {
      add_loaded_tile(kernels, queries, part, sums, scratch);
    }
  }
}

void merge_exact_sums(const Kernels& kernels, int64_t rows, int64_t head_dim,
                      const ExactSums& other, const ExactSums& sums) {
  for (int64_t row = 0; row < rows; ++row) {
    if (other.sum[row] == 0.0f) continue;
    float* y = sums.y + row * head_dim;
    const float* other_y = other.y + row * head_dim;
    const float new_max = std::max(sums.max[row], other.max[row]);
    const float mine = std::exp(sums.max[row] - new_max);
    const float others = std::exp(other.max[row] - new_max);
    sums.max[row] = new_max;
    sums.sum[row] = mine * sums.sum[row] + others * other.sum[row];
    kernels.scale(y, head_dim, mine);
    for (int64_t i = 0; i < head_dim; ++i) y[i] += others * other_y[i];
  }
}

void gather_queries(const AttentionShape& shape, int64_t kv_head, const float* q, int64_t q_stride,
                    int64_t tokens, float* queries) {
  const int64_t d = shape.head_dim;
  const float* group = q + kv_head * shape.group_size() * d;
  for (int64_t head = 0; head < shape.group_size(); ++head) {
    for (int64_t token = 0; token < tokens; ++token) {
      std::memcpy(queries, group + token * q_stride + head * d,
                  static_cast<size_t>(d) * sizeof(float));
      queries += d;
    }
  }
}

void write_softmax(const AttentionShape& shape, int64_t kv_head, int64_t tokens,
                   const ExactSums& sums, float* out, int64_t out_stride) {
  const int64_t d = shape.head_dim;
  for (int64_t head = 0; head < shape.group_size(); ++head) {
    for (int64_t token = 0; token < tokens; ++token) {
      const int64_t row = head * tokens + token;
      const float factor = 1.0f / sums.sum[row];
      float* y = out + token * out_stride + (kv_head * shape.group_size() + head) * d;
      for (int64_t i = 0; i < d; ++i) y[i] = factor * sums.y[row * d + i];
    }
  }
}

}  // namespace lola

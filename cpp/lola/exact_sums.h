// Softmax attention as running sums over tiles of pairs, so that the pairs may come from several
// places: for each query  max = max l_i,  sum = sum exp(l_i - max),  y = sum exp(l_i - max) v_i,
// with logits l_i = q'k_i.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "lola/lola_layer.h"

namespace lola {

// Tokens of one pass over the pairs.
constexpr int64_t kPieceTokens = 64;

struct ExactSums {
  float* max;  // [rows], -inf while no pair was seen
  float* sum;  // [rows]
  float* y;    // [rows, head_dim]
};

// Floats that ExactSums of so many rows take.
constexpr int64_t exact_sums_size(int64_t rows, int64_t head_dim) { return rows * (head_dim + 2); }

// Sums over no pairs yet, laid out in `memory`.
ExactSums start_exact_sums(float* memory, int64_t rows, int64_t head_dim);

// Queries of a group of heads, each with the same tokens.
struct QueryBlock {
  const float* q;  // [heads, tokens, head_dim], scaled by 1 / sqrt(head_dim)
  int64_t heads;
  int64_t tokens;
  int64_t head_dim;
};

// Neighbouring pairs of one memory, as they are stored.
struct PairRun {
  PairType type;
  const uint8_t* k;  // [count, row_bytes]
  const uint8_t* v;  // [count, row_bytes]
  int64_t row_bytes;
  int64_t count;
  int64_t
      visible;  // pairs that the first token may see, any number; each later token sees one more

  PairRun part(int64_t begin, int64_t size) const {
    return {type, k + begin * row_bytes, v + begin * row_bytes, row_bytes, size, visible - begin};
  }
};

// sums [heads * tokens] gain the pairs.
void add_pairs(const Kernels& kernels, const QueryBlock& queries, const PairRun& pairs,
               const ExactSums& sums, LolaScratch& scratch);

// sums gain the pairs of `other`, for each row.
void merge_exact_sums(const Kernels& kernels, int64_t rows, int64_t head_dim,
                      const ExactSums& other, const ExactSums& sums);

// y / sum of each row, to the columns of kv head `kv_head`'s query heads in out [tokens, heads *
// head_dim] (row stride out_stride). sums [group * tokens].
void write_softmax(const AttentionShape& shape, int64_t kv_head, int64_t tokens,
                   const ExactSums& sums, float* out, int64_t out_stride);

// Copies the queries that read kv head `kv_head` to [group, tokens, head_dim].
void gather_queries(const AttentionShape& shape, int64_t kv_head, const float* q, int64_t q_stride,
                    int64_t tokens, float* queries);

}  // namespace lola

// Exact causal softmax attention of one kv head over its KV cache: the layers of a hybrid model
// that stay softmax, and models without feature maps.
#pragma once

#include <cstdint>

#include "lola/exact_sums.h"
#include "lola/lola_layer.h"
#include "memory/kv_cache.h"

namespace lola {

// One kv head of one softmax layer.
struct SoftmaxHead {
  const Kernels& kernels;
  const AttentionShape& shape;
  const KvPageLayout& layout;
  KvPages pages;
  int64_t index;  // which kv head
  LolaScratch& scratch;
};

// The pairs of new tokens enter the cache, rounded to its type. The pages for
// them are there, the caller's duty.
void append_to_cache(const SoftmaxHead& head, const QkvRows& rows, int64_t tokens,
                     int64_t position);

// Outputs of the queries of `tokens` tokens from `position` on, whose pairs are in the cache.
// out [tokens, heads * head_dim], row stride out_stride: the columns of this kv head's query heads
// are written.
void softmax_attend(const SoftmaxHead& head, const float* q, int64_t q_stride, int64_t tokens,
                    int64_t position, float* out, int64_t out_stride);

// The same over the pairs at positions [begin, end) alone: sums [group * tokens] gain them. For
// sharing a long cache among threads; merge_exact_sums() puts the parts together, and
// write_softmax() divides.
void softmax_attend_range(const SoftmaxHead& head, const float* q, int64_t q_stride, int64_t tokens,
                          int64_t position, int64_t begin, int64_t end, const ExactSums& sums);

}  // namespace lola

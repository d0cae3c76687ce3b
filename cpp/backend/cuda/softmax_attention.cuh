// Exact causal attention over KV caches.
#pragma once

#include "backend/cuda/pair_ring.cuh"

namespace lola {

// cache: how pairs lie in a page. partials: softmax_partials() floats.
void softmax_attend(const Stream& stream, const PairRing& cache, const PieceSpan& tasks,
                    const AttentionRows& rows, const ProductCopy& copy, float* partials);
int64_t softmax_partials(const PairRing& cache, const PieceSpan& tasks);

}  // namespace lola

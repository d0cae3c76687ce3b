// The output of queries: three partial sums (sliding window, sparse cache, hidden state) and one
// normaliser.
#pragma once

#include <cstdint>

#include "lola/lola_layer.h"

namespace lola {

// q: the rows of `tokens` queries at positions from `position` on, all of one chunk, whose pairs
// are in the window. out [tokens, heads * head_dim], row stride out_stride: the columns of this kv
// head's query heads are written.
void attend(const KvHead& head, const float* q, int64_t q_stride, int64_t tokens, int64_t position,
            float* out, int64_t out_stride);

}  // namespace lola

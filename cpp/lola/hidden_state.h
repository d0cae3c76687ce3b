// Memory 3 at work: what is absorbed into Hs and s, and what is read from them.
#pragma once

#include <cstdint>

#include "lola/lola_layer.h"

namespace lola {

// For each row of features: y = phi'Hs and sum = phi's.
struct LinearSums {
  float* y;    // [count, head_dim]
  float* sum;  // [count]
};

// Floats that LinearSums of so many rows take.
constexpr int64_t linear_sums_size(int64_t count, int64_t head_dim) {
  return count * (head_dim + 1);
}

// phi [count, feature_size], of queries or of keys. Reads the pending sums too.
LinearSums read_hidden_state(const Kernels& kernels, const AttentionShape& shape,
                             const HiddenState& hidden, const float* phi, int64_t count,
                             float* memory);

// Hs += sum phi(k) v', s += sum phi(k), for good. phi [count, feature_size], v [count, head_dim];
// absorbed: pairs that the hidden state held before.
void absorb(const Kernels& kernels, const AttentionShape& shape, const HiddenState& hidden,
            const float* phi, const float* v, int64_t count, int64_t absorbed);

// A copy with the pending sums added, in `memory` [feature_size * (head_dim + 1)]: for many reads.
HiddenState merge_pending(const Kernels& kernels, const AttentionShape& shape,
                          const HiddenState& hidden, float* memory);

// A copy of the hidden state with these pairs absorbed, in `memory` [feature_size * (head_dim +
// 1)].
HiddenState imagine_absorbed(const Kernels& kernels, const AttentionShape& shape,
                             const HiddenState& hidden, const float* phi, const float* v,
                             int64_t count, float* memory);

}  // namespace lola

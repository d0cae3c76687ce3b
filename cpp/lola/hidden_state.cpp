// Why sums are added in portions: a float32 sum stops growing when an increment falls under half an
// ulp of it. The pairs of a boundary are summed first and added once; where a boundary brings fewer
// than kFlushPairs, they wait in the pending sums until so many have come. 64 pairs at a time keep
// the error of random increments near 1e-5 after ten million tokens.
#include "lola/hidden_state.h"

#include <algorithm>
#include <vector>

namespace lola {
namespace {

// state += phi' v, sum += phi' 1; one addition to each value.
void accumulate(const Kernels& kernels, const AttentionShape& shape, const float* phi,
                const float* v, int64_t count, float* state, float* sum) {
  const int64_t f = shape.feature_size;
  const int64_t d = shape.head_dim;
  const std::vector<float> ones(static_cast<size_t>(count), 1.0f);
  kernels.gemm_tn(f, d, count, phi, f, v, d, state, d);
  kernels.gemm_tn(1, f, count, ones.data(), 1, phi, f, sum, f);
}

void add_sums(const Kernels& kernels, const AttentionShape& shape, const float* state,
              const float* sum, const HiddenState& hidden) {
  kernels.add(hidden.state, state, shape.feature_size * shape.head_dim);
  kernels.add(hidden.sum, sum, shape.feature_size);
}

void flush_pending(const Kernels& kernels, const AttentionShape& shape, const HiddenState& hidden) {
  add_sums(kernels, shape, hidden.pending_state, hidden.pending_sum, hidden);
  std::fill_n(hidden.pending_state, shape.feature_size * shape.head_dim, 0.0f);
  std::fill_n(hidden.pending_sum, shape.feature_size, 0.0f);
}

// y += phi Hs, sum += phi s.
void add_products(const Kernels& kernels, const AttentionShape& shape, const float* state,
                  const float* state_sum, const float* phi, int64_t count, const LinearSums& sums) {
  const int64_t f = shape.feature_size;
  const int64_t d = shape.head_dim;
  kernels.gemm_nn(count, d, f, phi, f, state, d, sums.y, d);
  for (int64_t i = 0; i < count; ++i) sums.sum[i] += kernels.dot(phi + i * f, state_sum, f);
}

}  // namespace

LinearSums read_hidden_state(const Kernels& kernels, const AttentionShape& shape,
                             const HiddenState& hidden, const float* phi, int64_t count,
                             float* memory) {
  std::fill_n(memory, linear_sums_size(count, shape.head_dim), 0.0f);
  const LinearSums sums{memory, memory + count * shape.head_dim};
  add_products(kernels, shape, hidden.state, hidden.sum, phi, count, sums);
  if (hidden.pending_state != nullptr) {
    add_products(kernels, shape, hidden.pending_state, hidden.pending_sum, phi, count, sums);
  }
  return sums;
}

void absorb(const Kernels& kernels, const AttentionShape& shape, const HiddenState& hidden,
            const float* phi, const float* v, int64_t count, int64_t absorbed) {
  if (hidden.pending_state == nullptr) {
    return accumulate(kernels, shape, phi, v, count, hidden.state, hidden.sum);
  }
  accumulate(kernels, shape, phi, v, count, hidden.pending_state, hidden.pending_sum);
  if ((absorbed + count) / kFlushPairs > absorbed / kFlushPairs) {
    flush_pending(kernels, shape, hidden);
  }
}

HiddenState merge_pending(const Kernels& kernels, const AttentionShape& shape,
                          const HiddenState& hidden, float* memory) {
  const int64_t state_size = shape.feature_size * shape.head_dim;
  const HiddenState merged{memory, memory + state_size, nullptr, nullptr};
  std::copy_n(hidden.state, state_size, merged.state);
  std::copy_n(hidden.sum, shape.feature_size, merged.sum);
  add_sums(kernels, shape, hidden.pending_state, hidden.pending_sum, merged);
  return merged;
}

HiddenState imagine_absorbed(const Kernels& kernels, const AttentionShape& shape,
                             const HiddenState& hidden, const float* phi, const float* v,
                             int64_t count, float* memory) {
  const int64_t state_size = shape.feature_size * shape.head_dim;
  const HiddenState imagined{memory, memory + state_size, nullptr, nullptr};
  std::fill_n(memory, state_size + shape.feature_size, 0.0f);
  accumulate(kernels, shape, phi, v, count, imagined.state, imagined.sum);
  add_sums(kernels, shape, hidden.state, hidden.sum, imagined);
  if (hidden.pending_state != nullptr) {
    add_sums(kernels, shape, hidden.pending_state, hidden.pending_sum, imagined);
  }
  return imagined;
}

}  // namespace lola

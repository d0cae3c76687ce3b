// The eligible pairs of boundaries are scored where they compete.
#include <iterator>
#include <string_view>
#include <utility>

#include "backend/cuda/linear_rows.cuh"
#include "backend/cuda/lola_boundary.cuh"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

template <int kDim>
constexpr int kStages = kDim <= 128 ? 3 : 2;  // of hidden states
constexpr int kColumnWarps = 2;               // that share rows
template <int kDim>
using Part = WarpPart<kDim, kColumnWarps>;

template <int kDim>
int64_t memory_bytes(const LolaView& view) {
  return int64_t{4} * kStages<kDim> * stage_floats<kDim>(view.head_dim);
}

// The score that a policy of the table gives.
template <size_t... policies>
__device__ inline float score_of(int policy, const PairFacts& facts,
                                 std::index_sequence<policies...>) {
  float score = 0.0f;
  const auto ask = [&]<size_t own>() {
    constexpr CachePolicy kPolicy = kCachePolicies[own];
    if constexpr (kPolicy.score != nullptr) {
      if (policy == static_cast<int>(own)) score = kPolicy.score(facts);
    }
  };
  (ask.template operator()<policies>(), ...);
  return score;
}

// SRE of a lane's rows in its warp's columns, whose recall is y / sum.
template <int kGroups>
__device__ inline void recall_errors(const RowSums<kGroups>& y, const float sum[2],
                                     const Eight (&values)[2][kGroups], float errors[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float factor = 1.0f / sum[i];
    errors[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < kGroups * 8; ++j) {
      const float difference = y.at(j / 8, i, j % 8) * factor - values[i][j / 8].v[j % 8];
      errors[i] += difference * difference;
    }
  }
  over_row(errors, [](float a, float b) { return a + b; });
}

// The same from the hidden state, null while nothing is in it. number(r): of the pair in row r of
// the first `count`.
template <PairType type, int kDim, typename Number>
__device__ inline void ask_for_recall(const LolaView& view, const RunScratch& scratch,
                                      const DeviceBoundary& boundary, int head,
                                      const HiddenRows* hidden, int count, const Number& number,
                                      float* shared, float errors[2]) {
  const Lane lane;
  const Part<kDim> part;
  const Owner owner(view, view.owner_of(head));
  Eight values[2][part.kGroups] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint8_t* row = numbered_row(view, scratch, boundary.memory, boundary.numbers, owner,
                                      number(min(part.row + lane.row + 8 * i, count - 1)), true);
#pragma unroll
    for (int group = 0; group < part.kGroups; ++group) {
      const int column = part.column + group * kGroupColumns + lane.quarter * 8;
      if (column < view.head_dim) values[i][group] = load_eight<type>(row, column);
    }
  }
  RowSums<part.kGroups> y;
  float sum[2] = {1.0f, 1.0f};
  if (hidden != nullptr) {
    const int stride = feature_stride(view.features);
    const float* features =
        scratch.key_features + (head * scratch.rows + boundary.feature_row) * stride;
    read_hidden<kDim, kStages<kDim>, kColumnWarps>(
        shared, lane, part, *hidden, view.features, view.head_dim, count,
        [&](int r) { return features + static_cast<int64_t>(number(r)) * stride; }, y, sum);
  }
  if (part.column < view.head_dim) recall_errors(y, sum, values, errors);
}

// A block per kRows eligible pairs of one head.
template <PairType type, int kDim>
__global__ void __launch_bounds__(Part<kDim>::kThreads)
    score_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                 const __grid_constant__ RunScratch scratch, int policy, RecallFrom from) {
  extern __shared__ __align__(16) float shared[];
  __shared__ int numbers[RowTile<kDim>::kRows];
  __shared__ float others[RowTile<kDim>::kRows];  // errors in the columns of the second warps
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  wait_for_previous_kernel();
  const int first = blockIdx.x * RowTile<kDim>::kRows, head = blockIdx.y, d = view.head_dim;
  const int all = boundary.cached + boundary.leaving;
  if (boundary.memory == nullptr || first >= all || all <= view.sparse_capacity) return;
  const int count = min(RowTile<kDim>::kRows, all - first);
  const Owner owner(view, view.owner_of(head));
  if (threadIdx.x < count) {
    numbers[threadIdx.x] =
        eligible_number(view, scratch, boundary, owner.index, first + threadIdx.x);
  }
  __syncthreads();
  float errors[2] = {};
  if (from != RecallFrom::kNothing) {
    HiddenRows hidden = from == RecallFrom::kStateAfter
                            ? hidden_at(view, scratch.imagined, blockIdx.z, head)
                            : hidden_of(view, boundary.memory, scratch, boundary.from, head);
    if (from == RecallFrom::kStateAfter) hidden.pending_state = hidden.pending_sum = nullptr;
    const bool empty = from == RecallFrom::kStateBefore && boundary.absorbed == 0;
    ask_for_recall<type, kDim>(
        view, scratch, boundary, head, empty ? nullptr : &hidden, count,
        [&](int r) { return numbers[r]; }, shared, errors);
  }
  const Lane lane;
  const Part<kDim> part;
  for (int i = 0; i < 2; ++i) {
    if (part.column > 0 && lane.quarter == 0) others[part.row + lane.row + 8 * i] = errors[i];
  }
  __syncthreads();
  if (part.column > 0 || lane.quarter != 0) return;
  const int64_t heads_part = (static_cast<int64_t>(blockIdx.z) * view.heads + head) * scratch.most;
  for (int i = 0; i < 2; ++i) {
    const int row = part.row + lane.row + 8 * i;
    if (row >= count) continue;
    const int64_t position =
        position_of(view, boundary.memory, boundary.numbers, owner.index, numbers[row]);
    const PairFacts facts{
        .recall_error = errors[i] + others[row],
        .key_norm2 = scratch.key_norms[head * scratch.rows + boundary.feature_row + numbers[row]],
        .kappa = view.kappa[head],
        .head_dim = d,
        .position = position,
        .age = boundary.seen - position,
        .head = head,
        .seed = view.seed};
    scratch.head_scores[heads_part + first + row] =
        score_of(policy, facts, std::make_index_sequence<std::size(kCachePolicies)>());
  }
}

int index_of(const CachePolicy& policy) {
  int index = 0;
  while (std::string_view(kCachePolicies[index].name) != policy.name) ++index;
  return index;
}

}  // namespace

void pass_boundaries(const Stream& stream, const LolaView& view, const CachePolicy& policy,
                     const BoundarySpan& boundaries, const RunScratch& scratch) {
  if (policy.recall_from == RecallFrom::kStateAfter) {
    settle_boundaries(stream, view, boundaries, scratch, Absorb::kImagined);
  }
  if (view.sparse_capacity > 0) {
    with_tile(view.head_dim, [&]<int kDim>() {
      with_pair_type(view.type, [&]<PairType type>() {
        launch(stream, score_kernel<type, kDim>,
               grid_of(ceil_div(scratch.most, RowTile<kDim>::kRows), view.heads, boundaries.count),
               Part<kDim>::kThreads, memory_bytes<kDim>(view), view, boundaries.data, scratch,
               index_of(policy), policy.recall_from);
      });
    });
  }
  settle_boundaries(stream, view, boundaries, scratch, Absorb::kLost);
}

}  // namespace lola

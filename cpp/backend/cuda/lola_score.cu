// The eligible pairs of boundaries are scored where they compete.
#include "backend/cuda/linear_rows.cuh"
#include "backend/cuda/lola_boundary.cuh"
#include "backend/cuda/lola_choice.cuh"

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

// The pairs of a block, of one head at a boundary.
struct ScoredPairs {
  const LolaView& view;
  const RunScratch& scratch;
  const DeviceBoundary& boundary;
  int head, count;
  const int* numbers;  // [count], in shared memory

  __device__ int64_t feature_row(int number) const {
    return head * scratch.rows + boundary.feature_row + number;
  }
};

// errors [kRows] = SRE of the pairs in a warp's columns. hidden: null while nothing is in it.
template <PairType type, int kDim>
__device__ inline void recall_errors(const ScoredPairs& pairs, const Part<kDim>& part,
                                     const HiddenRows* hidden, float* shared, float* errors) {
  const Lane lane;
  const int d = pairs.view.head_dim, stride = feature_stride(pairs.view.features);
  const auto column = [&](int group) {
    return part.column + group * kGroupColumns + lane.quarter * 8;
  };
  Eight values[2][part.kGroups];
  const auto load_values = [&] {  // without a branch: all are on their way together
    const Owner owner(pairs.view, pairs.view.owner_of(pairs.head));
#pragma unroll
    for (int i = 0; i < 2 * part.kGroups; ++i) {
      const int row = min(part.row + lane.row + i % 2 * 8, pairs.count - 1);
      values[i % 2][i / 2] =
          load_eight<type>(numbered_row(pairs.view, pairs.scratch, pairs.boundary.memory,
                                        pairs.boundary.numbers, owner, pairs.numbers[row], true),
                           min(column(i / 2), d - 8));
    }
  };
  RowSums<part.kGroups> y;
  float sum[2] = {1.0f, 1.0f};
  if (hidden != nullptr) {
    const auto phi_of = [&](int r) {
      return pairs.scratch.key_features + pairs.feature_row(pairs.numbers[r]) * stride;
    };
    read_hidden<kDim, kStages<kDim>, kColumnWarps>(shared, lane, part, *hidden, pairs.view.features,
                                                   d, pairs.count, phi_of, load_values, y, sum);
  } else {
    load_values();
  }
  float squares[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float factor = 1.0f / sum[i];
#pragma unroll
    for (int j = 0; j < part.kGroups * 8; ++j) {
      if (column(j / 8) >= d) continue;
      const float difference = y.at(j / 8, i, j % 8) * factor - values[i][j / 8].v[j % 8];
      squares[i] += difference * difference;
    }
  }
  over_row(squares, [](float a, float b) { return a + b; });
  if (lane.quarter != 0) return;
  for (int i = 0; i < 2; ++i) errors[part.row + lane.row + 8 * i] = squares[i];
}

// A block per kRows eligible pairs of one head.
template <PairType type, int kDim>
__global__ void __launch_bounds__(Part<kDim>::kThreads)
    score_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                 const __grid_constant__ RunScratch scratch, int policy, RecallFrom from) {
  extern __shared__ __align__(16) float shared[];
  constexpr int kRows = RowTile<kDim>::kRows;
  __shared__ int numbers[kRows];
  __shared__ float errors[kColumnWarps * kRows];
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  wait_for_previous_kernel();
  const int first = blockIdx.x * kRows, head = blockIdx.y, row = static_cast<int>(threadIdx.x);
  const int all = boundary.cached + boundary.leaving;
  if (boundary.memory == nullptr || first >= all || all <= view.sparse_capacity) return;
  const int count = min(kRows, all - first);
  const ScoredPairs pairs{view, scratch, boundary, head, count, numbers};
  const int own =
      eligible_number(view, scratch, boundary, view.owner_of(head), first + min(row, count - 1));
  if (row < kRows) numbers[row] = own;
  __syncthreads();
  PairFacts facts{};
  if (row < kRows) {
    facts = facts_of(view, boundary, head, own, scratch.key_norms[pairs.feature_row(own)]);
  }
  if (from != RecallFrom::kNothing) {
    HiddenRows hidden = from == RecallFrom::kStateAfter
                            ? hidden_at(view, scratch.imagined, blockIdx.z, head)
                            : hidden_of(view, boundary.memory, scratch, boundary.from, head);
    if (from == RecallFrom::kStateAfter) hidden.pending_state = hidden.pending_sum = nullptr;
    const bool empty = from == RecallFrom::kStateBefore && boundary.absorbed == 0;
    const Part<kDim> part;
    recall_errors<type, kDim>(pairs, part, empty ? nullptr : &hidden, shared,
                              errors + (part.column > 0 ? kRows : 0));
    __syncthreads();
    if (row < kRows) facts.recall_error = errors[row] + errors[kRows + row];
  }
  if (row >= count) return;
  scratch.head_scores[(static_cast<int64_t>(blockIdx.z) * view.heads + head) * scratch.most +
                      first + row] = score_of(policy, facts);
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

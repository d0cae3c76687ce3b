#include <algorithm>

#include "backend/cuda/exact_rows.cuh"
#include "backend/cuda/linear_rows.cuh"
#include "lola/mixing.h"

namespace lola {
namespace {

constexpr int kStages = 2;  // of hidden states

template <PairType type, int kDim>
int64_t memory_bytes(const LolaView& view) {
  return std::max(ExactMemory<type, kDim>::bytes(view.head_dim),
                  int64_t{4} * kStages * stage_floats<kDim>(view.head_dim));
}

// The exact pairs that the queries of a piece see: first the sparse cache's, then the window's.
struct PiecePairs {
  const LolaView& view;
  const RunScratch& scratch;
  const DevicePiece& piece;
  Owner owner;

  // Numbers are read without a branch, so that those of several rows can be on their way together.
  __device__ const uint8_t* row(int i, bool value) const {
    const PairNumbers& numbers = piece.numbers;
    const int window = static_cast<int>(piece.window_begin - numbers.position) + numbers.cached;
    const int cached = piece.cached == 0 ? 0
                                         : cached_number(view, scratch, piece.version, owner.index,
                                                         min(i, piece.cached - 1));
    return numbered_row(view, scratch, piece.memory, numbers, owner,
                        i < piece.cached ? cached : window + i - piece.cached, value);
  }
};

// y = what the rows answer, of both parts.
template <int kDim>
__device__ inline void mix(const LolaView& view, int head, const ExactRows<kDim>& exact,
                           const RowSums<RowTile<kDim>::kGroups>& linear, const float linear_sum[2],
                           bool absorbed, RowSums<RowTile<kDim>::kGroups>& y) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const MixingWeights weights =
        absorbed ? mixing_weights(view.mixing, view.affine, view.gate[head], exact.max[i])
                 : MixingWeights{1.0f, 0.0f};
    const float sum = weights.exact * exact.sum[i] + weights.linear * linear_sum[i];
    const float exact_weight = weights.exact / sum, linear_weight = weights.linear / sum;
#pragma unroll
    for (int j = 0; j < RowTile<kDim>::kGroups * 8; ++j) {
      y.at(j / 8, i, j % 8) =
          exact_weight * y.at(j / 8, i, j % 8) + linear_weight * linear.at(j / 8, i, j % 8);
    }
  }
}

// A block per kRows queries of one head.
template <PairType type, int kDim>
__global__ void __launch_bounds__(RowTile<kDim>::kThreads, kDim <= 128 ? 2 : 1)
    attend_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                  const __grid_constant__ AttentionRows rows,
                  const __grid_constant__ ProductCopy copy,
                  const __grid_constant__ RunScratch scratch) {
  extern __shared__ __align__(16) float shared[];
  wait_for_previous_kernel();
  const DevicePiece piece = pieces[blockIdx.z];
  const int first = blockIdx.x * RowTile<kDim>::kRows, head = blockIdx.y, d = view.head_dim;
  if (first >= piece.tokens) return;
  const int tokens = min(RowTile<kDim>::kRows, piece.tokens - first);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  const bool has_rows = warp_row < tokens;
  const int64_t row = piece.row + first;
  const Lane lane;
  const ExactMemory<type, kDim> m(shared, d);
  load_rows<kDim>(m.rows, m.rows_stride, d, tokens, [&](int r) {
    return reinterpret_cast<const uint8_t*>(rows.q + ((row + r) * view.heads + head) * d);
  });
  const PiecePairs pairs{view, scratch, piece, Owner(view, view.owner_of(head))};
  const int before = piece.cached + first + static_cast<int>(piece.position - piece.window_begin);
  ExactRows<kDim> exact;
  add_pairs<type, kDim>(
      m, lane, d, before + tokens, has_rows, [&](int i, bool value) { return pairs.row(i, value); },
      [&](int r) { return before + r + 1; }, exact);
  RowSums<RowTile<kDim>::kGroups> linear;
  float linear_sum[2] = {};
  if (piece.absorbed > 0) {
    const int stride = feature_stride(view.features);
    const float* features = scratch.query_features + (head * scratch.tokens + row) * stride;
    read_hidden<kDim, kStages, 1>(
        shared, lane, {}, hidden_of(view, piece.memory, scratch, piece.version, head),
        view.features, d, tokens, [&](int r) { return features + r * stride; }, [] {}, linear,
        linear_sum);
  }
  const AttentionOutput output{rows.out, copy, view.heads * d};
  if (has_rows) {
    mix<kDim>(view, head, exact, linear, linear_sum, piece.absorbed > 0, exact.y);
    output.put_rows(lane, row + warp_row, tokens - warp_row, head * d, d, exact.y);
  }
  if (head > 0) return;
  for (int r = 0; r < tokens; ++r) output.pad(row + r);
}

}  // namespace

LolaView lola_view(const LolaLayer& layer, const LolaConfig& config,
                   const LayerMemoryLayout& layout, int64_t offset) {
  const auto at = [&](const char* name) {
    for (const MemorySection& section : layout.sections()) {
      if (section.name == name) return offset + section.offset;
    }
    return int64_t{-1};
  };
  LolaView view{};
  view.ring_k = at("window_k"), view.ring_v = at("window_v");
  view.cache_k = at("cache_k"), view.cache_v = at("cache_v");
  view.cache_position = at("cache_position"), view.cache_score = at("cache_score");
  view.state = at("hidden_state"), view.sum = at("hidden_sum");
  view.pending_state = at("pending_state"), view.pending_sum = at("pending_sum");
  view.row_bytes = layout.row_bytes();
  view.ring_capacity = config.window_size + config.chunk_size;
  view.sparse_capacity = sparse_capacity(config);
  view.heads = static_cast<int>(layer.shape.heads);
  view.kv_heads = static_cast<int>(layer.shape.kv_heads);
  view.head_dim = static_cast<int>(layer.shape.head_dim);
  view.group = static_cast<int>(layer.shape.group_size());
  view.features = static_cast<int>(layer.shape.feature_size);
  view.head_scope = config.scope == Scope::kHead;
  view.affine = config.affine;
  view.type = config.pair_type;
  view.mixing = config.mixing;
  view.seed = config.seed;
  view.map = layer.feature_map;
  view.query_map = layer.query_map;
  view.key_map = layer.key_map;
  view.gate = layer.gate;
  view.kappa = layer.kappa;
  return view;
}

void lola_attend(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                 const AttentionRows& rows, const ProductCopy& copy, const RunScratch& scratch) {
  with_tile(view.head_dim, [&]<int kDim>() {
    with_pair_type(view.type, [&]<PairType type>() {
      launch(stream, attend_kernel<type, kDim>,
             grid_of(ceil_div(pieces.most_tokens, RowTile<kDim>::kRows), view.heads, pieces.count),
             RowTile<kDim>::kThreads, memory_bytes<type, kDim>(view), view, pieces.data, rows, copy,
             scratch);
    });
  });
}

}  // namespace lola

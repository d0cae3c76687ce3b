#include "backend/cuda/lola_view.cuh"
#include "lola/mixing.h"

namespace lola {
namespace {

// A block per 16 queries of one head.
template <PairType type>
__global__ void __launch_bounds__(kTileThreads)
    attend_many_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                       const __grid_constant__ AttentionRows rows,
                       const __grid_constant__ ProductCopy copy) {
  extern __shared__ float shared[];
  wait_for_previous_kernel();
  const DevicePiece piece = pieces[blockIdx.z];
  const int first = blockIdx.x * kTileRows, head = blockIdx.y, kv_head = head / view.group;
  if (first >= piece.tokens) return;
  const int d = view.head_dim, tokens = min(kTileRows, piece.tokens - first);
  const TileMemory m(shared, d, view.features);
  const LanePart part;
  load_rows(m, d, tokens, [&](int r) {
    return rows.q + ((static_cast<int64_t>(piece.row) + first + r) * view.heads + head) * d;
  });
  const float scale = 1.0f / sqrtf(static_cast<float>(d));
  ExactPart exact;
  const int64_t now = piece.position + first, end = now + tokens;
  for (int64_t begin = piece.window_begin; begin < end; begin += kTileVectors) {
    const int64_t slot =
        ring_slot(view, piece.window_slot, static_cast<int>(begin - piece.window_begin));
    const auto row = [&](int64_t offset) {
      return [&view, &piece, slot, kv_head, offset](int v) -> const uint8_t* {
        return ring_row(view, piece.memory, offset, kv_head, ring_slot(view, slot, v));
      };
    };
    add_pairs<type>(
        m, part, d, static_cast<int>(min(int64_t{kTileVectors}, end - begin)), row(view.ring_k),
        row(view.ring_v), [&](int r) { return static_cast<int>(now + r + 1 - begin); }, scale,
        exact);
  }
  const int owner = view.owner_of(head);
  for (int begin = 0; begin < piece.cached; begin += kTileVectors) {
    const auto row = [&](int64_t offset) {
      return [&view, &piece, begin, owner, offset](int v) -> const uint8_t* {
        return cache_row(view, piece.memory, offset, owner, begin + v);
      };
    };
    add_pairs<type>(
        m, part, d, min(kTileVectors, piece.cached - begin), row(view.cache_k), row(view.cache_v),
        [](int) { return kTileVectors; }, scale, exact);
  }
  RowSums linear;
  float linear_sum[2] = {}, exact_weight[2], linear_weight[2];
  if (piece.absorbed > 0) {
    __syncthreads();
    map_rows(m, part, view.map, view.query_map + head * view.map.map_size * d, d);
    read_hidden(m, part, hidden_rows(view, piece.memory, head), view.features, d, linear,
                linear_sum);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const MixingWeights weights =
        piece.absorbed > 0 ? mixing_weights(view.mixing, view.affine, view.gate[head], exact.max[i])
                           : MixingWeights{1.0f, 0.0f};
    const float sum = weights.exact * exact.sum[i] + weights.linear * linear_sum[i];
    exact_weight[i] = weights.exact / sum;
    linear_weight[i] = weights.linear / sum;
  }
  exact.y.scale(exact_weight);
  linear.scale(linear_weight);
#pragma unroll
  for (int i = 0; i < kColumnBlocks * 16; ++i) {
    exact.y.value[i / 16][i / 8 % 2][i % 8] += linear.value[i / 16][i / 8 % 2][i % 8];
  }
  const AttentionOutput output{rows.out, copy, view.heads * view.head_dim};
  for_sums(part, d, exact.y, [&](int r, int column, float value) {
    if (r < tokens) output.put(piece.row + first + r, head * d + column, value);
  });
  if (head == 0) {
    for (int r = 0; r < tokens; ++r) output.pad(piece.row + first + r);
  }
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
                 const AttentionRows& rows, const ProductCopy& copy) {
  with_pair_type(view.type, [&]<PairType type>() {
    launch(stream, attend_many_kernel<type>,
           grid_of(ceil_div(pieces.most_tokens, kTileRows), view.heads, pieces.count), kTileThreads,
           tile_memory_bytes(view.head_dim, view.features), view, pieces.data, rows, copy);
  });
}

}  // namespace lola

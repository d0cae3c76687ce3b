#include "backend/cuda/lola_view.cuh"
#include "backend/cuda/one_row.cuh"
#include "lola/mixing.h"

namespace lola {
namespace {

// Memory that attend_one_kernel may take; more pairs go through the tiles.
constexpr int64_t kMostOneBytes = 96 * 1024;

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
  const TileMemory m(shared, d, kTileVectors, view.features);
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
  float linear_sum[4] = {}, exact_weight[4], linear_weight[4];
  if (piece.absorbed > 0) {
    __syncthreads();
    map_rows(m, part, view.map, view.query_map + head * view.map.map_size * d, d);
    read_hidden(m, part, hidden_rows(view, piece.memory, head), view.features, d, linear,
                linear_sum);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
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
    exact.y.value[i / 16][i / 4 % 4][i % 4] += linear.value[i / 16][i / 4 % 4][i % 4];
  }
  const AttentionOutput output{rows.out, copy, view.heads * view.head_dim};
  for_sums(part, d, exact.y, [&](int r, int column, float value) {
    if (r < tokens) output.put(piece.row + first + r, head * d + column, value);
  });
  if (head == 0) {
    for (int r = 0; r < tokens; ++r) output.pad(piece.row + first + r);
  }
}

// Shared memory of attend_one_kernel.
struct OneMemory {
  float* q;        // [head_dim]
  float* logits;   // [pairs]
  float* phi;      // [features]
  float* exact;    // [kOneWarps, head_dim] sums of the warps
  float* linear;   // [kOneWarps, head_dim]
  float* numbers;  // [2, kOneWarps]

  __device__ OneMemory(float* shared, const LolaView& view, int pairs) {
    q = shared;
    exact = q + view.head_dim;
    linear = exact + kOneWarps * view.head_dim;
    phi = linear + kOneWarps * view.head_dim;
    numbers = phi + view.features;
    logits = numbers + 2 * kOneWarps;
  }
};

int64_t one_memory_bytes(const LolaView& view, int64_t pairs) {
  return 4 * ((1 + 2 * kOneWarps) * view.head_dim + view.features + 2 * kOneWarps + pairs);
}

// The exact pairs that the query of a piece sees: first the window's, then the sparse cache's.
struct SeenPairs {
  const LolaView& view;
  const DevicePiece& piece;
  int kv_head, owner;

  __device__ int window() const {
    return static_cast<int>(piece.position + 1 - piece.window_begin);
  }
  __device__ int count() const { return window() + piece.cached; }
  __device__ const uint8_t* key(int i) const { return row(i, view.ring_k, view.cache_k); }
  __device__ const uint8_t* value(int i) const { return row(i, view.ring_v, view.cache_v); }

 private:
  // Without a branch, so that the loads of several rows can be on their way together.
  __device__ const uint8_t* row(int i, int64_t in_window, int64_t in_cache) const {
    const bool recent = i < window();
    const int64_t slot = recent ? ring_slot(view, piece.window_slot, i) : i - window();
    const int64_t part = recent ? kv_head : owner;
    const int64_t capacity = recent ? view.ring_capacity : view.sparse_capacity;
    return piece.memory + (recent ? in_window : in_cache) +
           (part * capacity + slot) * view.row_bytes;
  }
};

// Asks for `bytes` from `from` on to be brought to the second-level cache; the block shares it out.
__device__ inline void prefetch(const uint8_t* from, int64_t bytes) {
  constexpr int kLine = 128;
  for (int64_t at = threadIdx.x * kLine; at < bytes; at += kOneWarps * 32 * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  }
}

// What a query will read of its session, but for the pair that enters with it: nothing since the
// step before has changed it.
__device__ inline void prefetch_memories(const LolaView& view, const DevicePiece& piece, int head) {
  const int kv_head = head / view.group, owner = view.owner_of(head);
  const int64_t window = view.ring_capacity * view.row_bytes;
  const bool speaks = head % view.group == 0;  // for its group, where all read the same
  if (view.head_scope || speaks) {
    prefetch(cache_row(view, piece.memory, view.cache_k, owner, 0), piece.cached * view.row_bytes);
    prefetch(cache_row(view, piece.memory, view.cache_v, owner, 0), piece.cached * view.row_bytes);
  }
  if (speaks) {
    prefetch(ring_row(view, piece.memory, view.ring_k, kv_head, 0), window);
    prefetch(ring_row(view, piece.memory, view.ring_v, kv_head, 0), window);
  }
  if (piece.absorbed == 0) return;
  const HiddenRows hidden = hidden_rows(view, piece.memory, head);
  prefetch(reinterpret_cast<const uint8_t*>(hidden.state),
           int64_t{4} * view.features * view.head_dim);
}

// m.phi = the features of the query, once the block meets again.
__device__ inline void map_one(const LolaView& view, const OneMemory& m, int head) {
  const int f = static_cast<int>(view.map.map_size), d = view.head_dim;
  const float* w = view.query_map + static_cast<int64_t>(head) * f * d;
  one_products(
      m.q, d, f, 1.0f, [&](int i, int c) { return load_eight(w + i * d + c); }, m.phi);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  for (int j = threadIdx.x; j < f && view.map.skip; j += 32) m.phi[j] += m.q[j];
  activate<32>(view.map, f, [&](int j) -> float& { return m.phi[j]; });
}

// A block per head of a piece of one token.
template <PairType type>
__global__ void __launch_bounds__(kOneWarps * 32, 2)
    attend_one_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                      const __grid_constant__ AttentionRows rows,
                      const __grid_constant__ ProductCopy copy) {
  extern __shared__ float shared[];
  const DevicePiece piece = pieces[blockIdx.y];
  prefetch_memories(view, piece, blockIdx.x);
  wait_for_previous_kernel();
  const int head = blockIdx.x, d = view.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const SeenPairs pairs{view, piece, head / view.group, view.owner_of(head)};
  const int count = pairs.count();
  const OneMemory m(shared, view, count);
  const float* q = rows.q + (static_cast<int64_t>(piece.row) * view.heads + head) * d;
  for (int i = threadIdx.x; i < d; i += kOneWarps * 32) m.q[i] = q[i];
  __syncthreads();
  one_products(
      m.q, d, count, 1.0f / sqrtf(static_cast<float>(d)),
      [&](int i, int c) { return load_eight<type>(pairs.key(i), c); }, m.logits);
  const bool linear = piece.absorbed > 0;
  if (linear) map_one(view, m, head);
  __syncthreads();
  float max = -INFINITY;
  for (int i = lane; i < count; i += 32) max = fmaxf(max, m.logits[i]);
  for (int offset = 16; offset > 0; offset /= 2)
    max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
  float sum = 0.0f, linear_sum = 0.0f;
  one_weighted(
      d, count,
      [&](int i) {
        const float w = expf(m.logits[i] - max);
        sum += w;
        return w;
      },
      [&](int i, int c) { return load_eight<type>(pairs.value(i), c); }, m.exact);
  if (linear) {
    const HiddenRows hidden = hidden_rows(view, piece.memory, head);
    const auto weight = [&](int j) {
      linear_sum += m.phi[j] * (hidden.sum[j] +
                                (hidden.pending_sum != nullptr ? hidden.pending_sum[j] : 0.0f));
      return m.phi[j];
    };
    const auto row = [&](int j, int c) {
      Eight x = load_eight(hidden.state + static_cast<int64_t>(j) * d + c);
      if (hidden.pending_state == nullptr) return x;
      const Eight p = load_eight(hidden.pending_state + static_cast<int64_t>(j) * d + c);
#pragma unroll
      for (int n = 0; n < 8; ++n) x.v[n] += p.v[n];
      return x;
    };
    one_weighted(d, view.features, weight, row, m.linear);
  }
  sum += __shfl_xor_sync(~0u, sum, 16);  // of both half warps
  linear_sum += __shfl_xor_sync(~0u, linear_sum, 16);
  if (lane == 0) m.numbers[warp] = sum, m.numbers[kOneWarps + warp] = linear_sum;
  __syncthreads();
  sum = linear_sum = 0.0f;
  for (int w = 0; w < kOneWarps; ++w) sum += m.numbers[w], linear_sum += m.numbers[kOneWarps + w];
  const MixingWeights weights = linear
                                    ? mixing_weights(view.mixing, view.affine, view.gate[head], max)
                                    : MixingWeights{1.0f, 0.0f};
  const float total = weights.exact * sum + weights.linear * linear_sum;
  const AttentionOutput output{rows.out, copy, view.heads * view.head_dim};
  for (int c = threadIdx.x; c < d; c += kOneWarps * 32) {
    float exact_y = 0.0f, linear_y = 0.0f;
    for (int w = 0; w < kOneWarps; ++w) {
      exact_y += m.exact[w * d + c];
      if (linear) linear_y += m.linear[w * d + c];
    }
    output.put_rounded(piece.row, head * d + c,
                       weights.exact / total * exact_y + weights.linear / total * linear_y);
  }
  if (head == 0) output.pad(piece.row);
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

bool answers_one(const LolaView& view) {
  return one_memory_bytes(view, view.ring_capacity + view.sparse_capacity) <= kMostOneBytes;
}

void lola_attend(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                 const AttentionRows& rows, const ProductCopy& copy) {
  const int64_t one_bytes = one_memory_bytes(view, view.ring_capacity + view.sparse_capacity);
  with_pair_type(view.type, [&]<PairType type>() {
    if (pieces.most_tokens == 1 && answers_one(view)) {
      launch(stream, attend_one_kernel<type>, grid_of(view.heads, pieces.count), kOneWarps * 32,
             one_bytes, view, pieces.data, rows, copy);
    } else {
      launch(stream, attend_many_kernel<type>,
             grid_of(ceil_div(pieces.most_tokens, kTileRows), view.heads, pieces.count),
             kTileThreads, tile_memory_bytes(view.head_dim, kTileVectors, view.features), view,
             pieces.data, rows, copy);
    }
  });
}

}  // namespace lola

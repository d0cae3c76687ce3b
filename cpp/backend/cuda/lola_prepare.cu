// What comes before the attention of single queries: rotation, the queries' features, and the pair
// that enters the window.
#include "backend/cuda/lola_view.cuh"
#include "backend/cuda/warp_sums.cuh"

namespace lola {
namespace {

constexpr int kThreads = 256;
constexpr int kHalfWarps = kThreads / 16;
constexpr int kBlock = 128;      // columns of half a warp, 8 a lane
constexpr int kManyPieces = 32;  // from so many on, tensor cores map them
constexpr int kMapRows = 4;      // of half a warp, on their way before the query is there

// phi [features] of x [head_dim], both in shared memory, by the block. `early` holds the rows of W
// that map_early() loaded.
struct EarlyRows {
  Eight row[kMapRows];
};

__device__ inline EarlyRows map_early(const float* w, int f, int d) {
  const int half_warp = threadIdx.x / 16, c = threadIdx.x % 16 * 8;
  EarlyRows early{};
#pragma unroll
  for (int n = 0; n < kMapRows; ++n) {
    const int j = half_warp + n * kHalfWarps;
    if (j < f && c < d) early.row[n] = load_eight(w + static_cast<int64_t>(j) * d + c);
  }
  return early;
}

__device__ inline void map_query(const FeatureMap& map, const float* w, const EarlyRows& early,
                                 const float* x, int d, float* phi) {
  const int f = static_cast<int>(map.map_size), half_warp = threadIdx.x / 16;
  const auto add = [&](const Eight& row, int c, float& sum) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += row.v[i] * x[c + i];
  };
  const auto put = [&](int j, float sum) {
    sum = half_warp_sum(sum);
    if (threadIdx.x % 16 == 0 && j < f) phi[j] = sum + (map.skip ? x[j] : 0.0f);
  };
  const int column = threadIdx.x % 16 * 8;
  const auto add_rest = [&](int j, int from, float& sum) {
    for (int c = from; c < d && j < f; c += kBlock) {
      add(load_eight(w + static_cast<int64_t>(j) * d + c), c, sum);
    }
  };
#pragma unroll
  for (int n = 0; n < kMapRows; ++n) {
    float sum = 0.0f;
    if (column < d) add(early.row[n], column, sum);
    add_rest(half_warp + n * kHalfWarps, column + kBlock, sum);
    put(half_warp + n * kHalfWarps, sum);
  }
  for (int begin = kMapRows * kHalfWarps; begin < f; begin += kHalfWarps) {
    float sum = 0.0f;
    add_rest(begin + half_warp, column, sum);
    put(begin + half_warp, sum);
  }
  __syncthreads();
  if (threadIdx.x < 32) activate<32>(map, f, [&](int j) -> float& { return phi[j]; });
  __syncthreads();
}

// A query head of a piece: rotated, in place, and mapped. x, phi: shared memory.
__device__ inline void prepare_query(const LolaView& view, const DevicePiece& piece, int head,
                                     const RopeRows& rope, const float* w, const EarlyRows& early,
                                     float* x, float* phi, float* features) {
  const int d = view.head_dim;
  float* q = rope.q + (int64_t{piece.row} * view.heads + head) * d;
  for (int i = threadIdx.x; i < d; i += kThreads) x[i] = rotated(rope, q, piece.row, i);
  __syncthreads();
  for (int i = threadIdx.x; i < d; i += kThreads) q[i] = x[i];
  if (piece.absorbed == 0) return;
  map_query(view.map, w, early, x, d, phi);
  for (int j = threadIdx.x; j < view.features; j += kThreads) features[j] = phi[j];
}

// The pair of a kv head enters the window.
template <PairType type>
__device__ inline void append_pair(const LolaView& view, const DevicePiece& piece, int kv_head,
                                   const AttentionRows& rows, const RopeRows& rope, float* x) {
  const int d = view.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t in = (int64_t{piece.row} * view.kv_heads + kv_head) * d;
  for (int i = threadIdx.x; i < d; i += kThreads) x[i] = rotated(rope, rows.k + in, piece.row, i);
  __syncthreads();
  const int64_t slot = piece.position % view.ring_capacity;
  if (warp == 0) {
    store_row<type>(x, d, lane, ring_row(view, piece.memory, view.ring_k, kv_head, slot));
  }
  if (warp == 1) {
    store_row<type>(rows.v + in, d, lane, ring_row(view, piece.memory, view.ring_v, kv_head, slot));
  }
}

// A block per query head and per kv head of a piece.
template <PairType type>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                   const __grid_constant__ AttentionRows rows,
                   const __grid_constant__ RopeRows rope, float* features) {
  extern __shared__ float shared[];
  const int d = view.head_dim, f = static_cast<int>(view.map.map_size), head = blockIdx.x;
  float *x = shared, *phi = shared + d;
  EarlyRows early{};
  const float* w = view.query_map + static_cast<int64_t>(head) * f * d;
  if (head < view.heads) early = map_early(w, f, d);
  const DevicePiece piece = pieces[blockIdx.y];
  wait_for_previous_kernel();
  if (head < view.heads) {
    prepare_query(view, piece, head, rope, w, early, x, phi,
                  features + (int64_t{blockIdx.y} * view.heads + head) * view.features);
  } else {
    append_pair<type>(view, piece, head - view.heads, rows, rope, x);
  }
}
}  // namespace

void prepare_queries(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                     const AttentionRows& rows, const RopeRows& rope, float* features) {
  if (pieces.count >= kManyPieces) return prepare_many(stream, view, pieces, rows, rope, features);
  with_pair_type(view.type, [&]<PairType type>() {
    launch(stream, prepare_kernel<type>, grid_of(view.heads + view.kv_heads, pieces.count),
           kThreads, 4 * (view.head_dim + view.features), view, pieces.data, rows, rope, features);
  });
}

}  // namespace lola

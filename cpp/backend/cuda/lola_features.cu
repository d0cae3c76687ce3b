// phi of the queries and of the eligible keys of a run.
#include "backend/cuda/lola_view.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {
namespace {

constexpr int kMapVectors = 32;           // rows of W in shared memory at a time
constexpr int kMapLanes = 8;              // threads of a row
constexpr int kMapTiles = 4;              // warps that share 16 rows, each a part of the vectors
constexpr int64_t kMostBytes = 96 << 10;  // of shared memory that small GPUs have

template <int kRows>
constexpr int kMapThreads = kMapLanes* kRows;

// Shared memory of a block for kRows rows.
template <int kRows>
struct MapMemory {
  float* rows;  // [kRows, stride]
  float* w;     // [kMapVectors, stride]
  float* phi;   // [kRows, phi_stride]
  int stride, phi_stride;

  static __host__ __device__ int phi_stride_of(int features) {
    return features + (32 + kMapLanes - features % 32) % 32;
  }
  __device__ MapMemory(float* shared, int head_dim, int features)
      : rows(shared),
        w(rows + kRows * dots_stride<float>(head_dim)),
        phi(w + kMapVectors * dots_stride<float>(head_dim)),
        stride(dots_stride<float>(head_dim)),
        phi_stride(phi_stride_of(features)) {}
  static int64_t bytes(int head_dim, int features) {
    return int64_t{4} *
           ((kRows + kMapVectors) * dots_stride<float>(head_dim) + kRows * phi_stride_of(features));
  }
};

// Rows of W [map_size, head_dim], from `begin` on, on their way to m.w.
template <int kRows>
__device__ inline void stage_map(const MapMemory<kRows>& m, const FeatureMap& map, const float* w,
                                 int begin, int head_dim) {
  const int count = min(kMapVectors, static_cast<int>(map.map_size) - begin);
  stage_rows<PairType::kF32, kMapThreads<kRows>, kMapVectors, kMaxHeadDim>(
      m.w, m.stride, dots_columns(head_dim), head_dim, count,
      [&](int j) { return reinterpret_cast<const uint8_t*>(w + (begin + j) * head_dim); });
}

// m.phi = phi of m.rows under one head's W; they and its first rows are on their way.
template <int kRows>
__device__ inline void map_rows(const MapMemory<kRows>& m, const FeatureMap& map, const float* w,
                                int head_dim) {
  const int f = static_cast<int>(map.map_size), columns = dots_columns(head_dim);
  const int warp = static_cast<int>(threadIdx.x) / 32, warp_row = warp / kMapTiles * kWarpRows;
  const int own_vectors = warp % kMapTiles * (kMapVectors / kMapTiles);
  const Lane lane;
#pragma unroll 1
  for (int begin = 0; begin < f; begin += kMapVectors) {
    if (begin > 0) stage_map(m, map, w, begin, head_dim);
    end_copies();
    wait_for_copies<0>();
    __syncthreads();
    float z[kMapVectors / kMapTiles / 8][4] = {};
    add_dots<kMapVectors / kMapTiles / 8, false>(lane, m.rows + warp_row * m.stride, m.stride,
                                                 m.w + own_vectors * m.stride, m.stride, columns,
                                                 z);
#pragma unroll
    for (int i = 0; i < kMapVectors / kMapTiles / 2; ++i) {
      const int row = warp_row + lane.row + i % 4 / 2 * 8;
      const int j = begin + own_vectors + i / 4 * 8 + lane.quarter * 2 + i % 2;
      if (j >= f) continue;
      m.phi[row * m.phi_stride + j] = z[i / 4][i % 4] + (map.skip ? m.rows[row * m.stride + j] : 0);
    }
    __syncthreads();
  }
  float* own = m.phi + static_cast<int>(threadIdx.x) / kMapLanes * m.phi_stride;
  activate<kMapLanes>(map, f, [&](int j) -> float& { return own[j]; });
  __syncthreads();
}

// to [count, feature_stride()] = m.phi
template <int kRows>
__device__ inline void store_features(const MapMemory<kRows>& m, int features, int count,
                                      float* to) {
  const int width = feature_stride(features);
  for (int r = threadIdx.x / 32; r < count; r += blockDim.x / 32) {
#pragma unroll 1
    for (int j = threadIdx.x % 32; j < width; j += 32) {
      to[static_cast<int64_t>(r) * width + j] = j < features ? m.phi[r * m.phi_stride + j] : 0.0f;
    }
  }
}

// A block per kRows queries of one head.
template <int kRows>
__global__ void __launch_bounds__(kMapThreads<kRows>)
    map_queries_kernel(const __grid_constant__ LolaView view, const DevicePiece* tasks,
                       const __grid_constant__ AttentionRows rows,
                       const __grid_constant__ RunScratch scratch) {
  extern __shared__ __align__(16) float shared[];
  wait_for_previous_kernel();
  const DevicePiece& task = tasks[blockIdx.z];
  const int first = blockIdx.x * kRows, head = blockIdx.y, d = view.head_dim;
  if (first >= task.tokens || task.absorbed == 0) return;
  const int count = min(kRows, task.tokens - first);
  const int64_t row = task.row + first;
  const MapMemory<kRows> m(shared, d, view.features);
  const float* w = view.query_map + static_cast<int64_t>(head) * view.map.map_size * d;
  stage_map(m, view.map, w, 0, d);
  stage_rows<PairType::kF32, kMapThreads<kRows>, kRows, kMaxHeadDim>(
      m.rows, m.stride, dots_columns(d), d, count, [&](int r) {
        return reinterpret_cast<const uint8_t*>(rows.q + ((row + r) * view.heads + head) * d);
      });
  map_rows(m, view.map, w, d);
  store_features(
      m, view.features, count,
      scratch.query_features + (head * scratch.tokens + row) * feature_stride(view.features));
}

// A block per kRows eligible pairs of one head.
template <PairType type, int kRows>
__global__ void __launch_bounds__(kMapThreads<kRows>)
    map_keys_kernel(const __grid_constant__ LolaView view, const DeviceChain* chains,
                    const __grid_constant__ RunScratch scratch) {
  extern __shared__ __align__(16) float shared[];
  wait_for_previous_kernel();
  const DeviceChain chain = chains[blockIdx.z];
  const int first = blockIdx.x * kRows, head = blockIdx.y, d = view.head_dim;
  if (chain.memory == nullptr || first >= chain.pairs) return;
  const int count = min(kRows, chain.pairs - first);
  const Owner owner(view, view.owner_of(head));
  const MapMemory<kRows> m(shared, d, view.features);
  const float* w = view.key_map + static_cast<int64_t>(head) * view.map.map_size * d;
  stage_map(m, view.map, w, 0, d);
  stage_rows<type, kMapThreads<kRows>, kRows, kMaxHeadDim>(
      m.rows, m.stride, dots_columns(d), d, count, [&](int r) {
        return numbered_row(view, scratch, chain.memory, chain.numbers, owner, first + r, false);
      });
  map_rows(m, view.map, w, d);
  const int64_t to = head * scratch.rows + chain.feature_row + first;
  store_features(m, view.features, count,
                 scratch.key_features + to * feature_stride(view.features));
  for (int r = threadIdx.x / 32; r < count; r += blockDim.x / 32) {
    float norm = 0.0f;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
      norm += m.rows[r * m.stride + c] * m.rows[r * m.stride + c];
    }
    for (int offset = 16; offset > 0; offset /= 2) norm += __shfl_xor_sync(~0u, norm, offset);
    if (threadIdx.x % 32 == 0) scratch.key_norms[to + r] = norm;
  }
}

// Calls f.template operator()<kRows>() for as many rows as fit.
template <typename F>
void with_rows(const LolaView& view, const F& f) {
  constexpr int kMostRows = 32;  // more fill a GPU worse
  if (MapMemory<kMostRows>::bytes(view.head_dim, view.features) <= kMostBytes) {
    return f.template operator()<kMostRows>();
  }
  f.template operator()<kWarpRows>();
}

}  // namespace

void map_queries(const Stream& stream, const LolaView& view, const PieceSpan& tasks,
                 const AttentionRows& rows, const RunScratch& scratch) {
  with_rows(view, [&]<int kRows>() {
    launch(stream, map_queries_kernel<kRows>,
           grid_of(ceil_div(tasks.most_tokens, kRows), view.heads, tasks.count), kMapThreads<kRows>,
           MapMemory<kRows>::bytes(view.head_dim, view.features), view, tasks.data, rows, scratch);
  });
}

void map_keys(const Stream& stream, const LolaView& view, const ChainSpan& chains,
              int64_t most_pairs, const RunScratch& scratch) {
  with_rows(view, [&]<int kRows>() {
    with_pair_type(view.type, [&]<PairType type>() {
      launch(stream, map_keys_kernel<type, kRows>,
             grid_of(ceil_div(most_pairs, kRows), view.heads, chains.count), kMapThreads<kRows>,
             MapMemory<kRows>::bytes(view.head_dim, view.features), view, chains.data, scratch);
    });
  });
}

}  // namespace lola

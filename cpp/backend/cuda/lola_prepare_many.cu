// What comes before the attention of many single queries: those of kRows sessions share what is
// read of a head's map.
#include "backend/cuda/lola_view.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = kWarpRows;                   // pieces of a block
constexpr int kLanes = kThreads / kRows;           // threads of a row
constexpr int kTileFeatures = 8;                   // of a warp
constexpr int kFeatures = kWarps * kTileFeatures;  // at a time

// Shared memory of a block.
struct ManyMemory {
  float* raw;            // [kRows, head_dim] as they come
  float *cosine, *sine;  // [kRows, pairs]
  float* x;              // [kRows, stride] rotated
  float* phi;            // [kRows, phi_stride]
  int stride, phi_stride;

  static __host__ __device__ int phi_stride_of(int features) {
    return features + (32 + kLanes - features % 32) % 32;
  }
  __device__ ManyMemory(float* shared, int head_dim, int pairs, int features)
      : raw(shared),
        cosine(raw + kRows * head_dim),
        sine(cosine + kRows * pairs),
        x(sine + kRows * pairs),
        phi(x + kRows * dots_stride<float>(head_dim)),
        stride(dots_stride<float>(head_dim)),
        phi_stride(phi_stride_of(features)) {}
  static int64_t bytes(int head_dim, int64_t pairs, int features) {
    return 4 * kRows *
           (head_dim + 2 * pairs + dots_stride<float>(head_dim) + phi_stride_of(features));
  }
};

// Rows of W that a warp multiplies, from `first` on: of a lane one, of every 16 columns four.
template <int kDim>
struct MapRows {
  float4 part[kDim / 16];

  __device__ void load(const float* w, int first, int map_size, int d) {
    const Lane lane;
    const int j = first + static_cast<int>(threadIdx.x) / 32 * kTileFeatures + lane.row;
    const float* from = w + static_cast<int64_t>(min(j, map_size - 1)) * d + lane.quarter * 4;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      part[i] = i * 16 + lane.quarter * 4 < d ? four_at(from + i * 16) : float4{};
    }
  }
};

// m.phi = W x of the features that a warp has of kFeatures, from `first` on.
template <int kDim>
__device__ inline void map_tile(const ManyMemory& m, const FeatureMap& map,
                                const MapRows<kDim>& rows, int first, int columns) {
  const Lane lane;
  const float* own = m.x + lane.row * m.stride + lane.quarter * 4;
  float sums[3][4] = {};  // products that wait for each other are few
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    if (i * 16 >= columns) break;
    const float4 a = four_at(own + i * 16), b = four_at(own + 8 * m.stride + i * 16);
    const float4& w = rows.part[i];
    const SplitRows one = split_rows(a.x, b.x, a.y, b.y), two = split_rows(a.z, b.z, a.w, b.w);
    const Split p = split(w.x), q = split(w.y), r = split(w.z), s = split(w.w);
    mma_tf32(sums[0], one.low, p.high, q.high);
    mma_tf32(sums[1], one.high, p.low, q.low);
    mma_tf32(sums[2], one.high, p.high, q.high);
    mma_tf32(sums[0], two.low, r.high, s.high);
    mma_tf32(sums[1], two.high, r.low, s.low);
    mma_tf32(sums[2], two.high, r.high, s.high);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = lane.row + i / 2 * 8;
    const int j =
        first + static_cast<int>(threadIdx.x) / 32 * kTileFeatures + lane.quarter * 2 + i % 2;
    if (j >= map.map_size) continue;
    m.phi[row * m.phi_stride + j] =
        sums[0][i] + sums[1][i] + sums[2][i] + (map.skip ? m.x[row * m.stride + j] : 0.0f);
  }
}

// A block per kRows pieces of a query head, of a kv head's keys or of its values. Threads of a row
// are neighbours.
template <PairType type, int kDim>
__global__ void __launch_bounds__(kThreads)
    prepare_many_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces, int all,
                        const __grid_constant__ AttentionRows rows,
                        const __grid_constant__ RopeRows rope, float* features) {
  extern __shared__ __align__(16) float shared[];
  const int d = view.head_dim, f = static_cast<int>(view.map.map_size);
  const int pairs = static_cast<int>(rope.pairs), columns = dots_columns(d);
  const int r = static_cast<int>(threadIdx.x) / kLanes, lane = threadIdx.x % kLanes;
  const int first = blockIdx.x * kRows, count = min(kRows, all - first);
  const int part = blockIdx.y, head = part < view.heads ? part : (part - view.heads) / 2;
  const bool query = part < view.heads, value = !query && (part - view.heads) % 2 == 1;
  const ManyMemory m(shared, d, pairs, view.features);
  const float* w = view.query_map + static_cast<int64_t>(head) * f * d;
  MapRows<kDim> map;
  if (query) map.load(w, 0, f, d);
  const DevicePiece& piece = pieces[first + min(r, count - 1)];
  const int64_t row = piece.row;
  for (int i = lane; i < pairs && !value; i += kLanes) {
    m.cosine[r * pairs + i] = rope.cosine[row * pairs + i];
    m.sine[r * pairs + i] = rope.sine[row * pairs + i];
  }
  wait_for_previous_kernel();
  float* from =
      query ? rope.q + (row * view.heads + head) * d
            : const_cast<float*>(value ? rows.v : rows.k) + (row * view.kv_heads + head) * d;
  float4 held[kDim / (4 * kLanes)] = {};
#pragma unroll
  for (int i = 0; i < kDim / (4 * kLanes); ++i) {
    const int c = (i * kLanes + lane) * 4;
    if (c < d && r < count) held[i] = four_at(from + c);
  }
#pragma unroll
  for (int i = 0; i < kDim / (4 * kLanes); ++i) {
    const int c = (i * kLanes + lane) * 4;
    if (c < d) *reinterpret_cast<float4*>(m.raw + r * d + c) = held[i];
  }
  __syncwarp();
  RopeRows own = rope;
  own.cosine = m.cosine, own.sine = m.sine;
  for (int c = lane; c < columns; c += kLanes) {
    const float x = c >= d ? 0.0f : value ? m.raw[r * d + c] : rotated(own, m.raw + r * d, r, c);
    m.x[r * m.stride + c] = x;
    if (query && r < count && c < d) from[c] = x;
  }
  __syncthreads();
  if (!query) {
    for (int i = threadIdx.x / 32; i < count; i += kWarps) {
      const DevicePiece& enters = pieces[first + i];
      store_row<type>(m.x + i * m.stride, d, threadIdx.x % 32,
                      ring_row(view, enters.memory, value ? view.ring_v : view.ring_k, head,
                               enters.position % view.ring_capacity));
    }
    return;
  }
  map_tile<kDim>(m, view.map, map, 0, columns);
  for (int begin = kFeatures; begin < f; begin += kFeatures) {
    map.load(w, begin, f, d);
    map_tile<kDim>(m, view.map, map, begin, columns);
  }
  __syncthreads();
  float* phi = m.phi + r * m.phi_stride;
  activate<kLanes>(view.map, f, [&](int j) -> float& { return phi[j]; });
  __syncwarp();
  float* to = features + ((first + r) * static_cast<int64_t>(view.heads) + head) * view.features;
  for (int j = lane; j < view.features && r < count; j += kLanes) to[j] = phi[j];
}

}  // namespace

void prepare_many(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                  const AttentionRows& rows, const RopeRows& rope, float* features) {
  with_tile(view.head_dim, [&]<int kDim>() {
    with_pair_type(view.type, [&]<PairType type>() {
      launch(stream, prepare_many_kernel<type, kDim>,
             grid_of(ceil_div(pieces.count, kRows), view.heads + 2 * view.kv_heads), kThreads,
             ManyMemory::bytes(view.head_dim, rope.pairs, view.features), view, pieces.data,
             pieces.count, rows, rope, features);
    });
  });
}

}  // namespace lola

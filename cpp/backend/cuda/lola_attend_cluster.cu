// Attention of a single query in one kernel, with its rotation, its features and the pair that
// enters. A cluster of blocks answers the query heads that share pairs: each brings its share of
// pairs, of the maps and of the hidden states to shared memory before the query is there, and sends
// what the others need of it to theirs.
//
// A block runs through its code once, so fetching instructions counts: sizes are known to the
// compiler where a division would stand else, and loops are seldom unrolled.
#include <cooperative_groups.h>

#include "backend/cuda/bulk_copy.cuh"
#include "backend/cuda/query_share.cuh"
#include "lola/mixing.h"

namespace lola {
namespace {

constexpr int kThreads = 256;
constexpr int kHalfWarps = kThreads / 16;
constexpr int kMostBlocks = 16;  // of a cluster
constexpr int kNumbers = 3;      // of a head: largest logit, sum of exponentials, phi's
constexpr int64_t kMostShared = 160 * 1024;

template <int kOwnHeads, int kOwnDim>
struct Shape {
  static constexpr int kHeads = kOwnHeads, kDim = kOwnDim;
  static constexpr int kWarpOutputs = kHeads * kDim / 32;
  static constexpr int kBlocks = kWarpOutputs < kMostBlocks ? kWarpOutputs : kMostBlocks;
  static constexpr int kOutputs = kHeads * kDim / kBlocks;  // that a block joins
  static constexpr int kParts = kThreads / (kDim / 2);      // of a block: two columns a thread
  static constexpr int kRow = 2 * kDim;                     // bytes of a stored key
};

// Of `count`, what is a block's at most.
template <int kBlocks>
__host__ __device__ constexpr int share_of(int64_t count) {
  return (static_cast<int>(count) + kBlocks - 1) / kBlocks;
}

// Sets of rows that are weighted with features: of both signs, flushed and pending.
__host__ __device__ inline int planes_of(const LolaView& view) {
  return view.features > view.map.map_size ? 2 : 1;
}
__host__ __device__ inline int sets_of(const LolaView& view) {
  return planes_of(view) * (view.pending_state < 0 ? 1 : 2);
}

// Shared memory of a block, the same in all of a cluster.
template <typename S>
struct ClusterMemory {
  uint8_t* pairs;      // [2, pairs, row]: keys, then values
  float* rows;         // [1 + sets, mapped, kHeads, kDim]: of the maps, then of the hidden states
  float* exact;        // [kParts, kHeads, kDim]
  float* linear;       // [kParts, kDim], of parts that each have one head
  float2* sums;        // from all blocks [kBlocks, kOutputs]: exact, linear
  float* q;            // [kHeads, kDim]
  float* weights;      // [pairs, kHeads]
  float* numbers;      // from all blocks [kBlocks, kNumbers, kHeads]
  float* phi;          // [kHeads, features]
  float* hidden_sums;  // [sets, mapped, kHeads]
  float* own;          // [kNumbers, kHeads]
  float* end;

  __host__ __device__ ClusterMemory(uint8_t* shared, const LolaView& view) {
    const int own_pairs = share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
    const int mapped = share_of<S::kBlocks>(view.map.map_size), sets = sets_of(view);
    pairs = shared;
    rows = reinterpret_cast<float*>(pairs + 2 * own_pairs * S::kRow);
    exact = rows + (1 + sets) * mapped * S::kHeads * S::kDim;
    linear = exact + S::kParts * S::kHeads * S::kDim;
    sums = reinterpret_cast<float2*>(linear + S::kParts * S::kDim);
    q = reinterpret_cast<float*>(sums + S::kBlocks * S::kOutputs);
    weights = q + S::kHeads * S::kDim;
    numbers = weights + own_pairs * S::kHeads;
    phi = numbers + S::kBlocks * kNumbers * S::kHeads;
    hidden_sums = phi + S::kHeads * view.features;
    own = hidden_sums + sets * mapped * S::kHeads;
    end = own + kNumbers * S::kHeads;
  }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Numbers for another block of the cluster, counted by its barrier as they arrive.
__device__ inline uint32_t address_in(const void* at, int block) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(shared_address(at)), "r"(block));
  return there;
}
__device__ inline void send(float* to, float value, Barrier& barrier, int block) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   address_in(to, block)),
               "f"(value), "r"(address_in(&barrier, block))
               : "memory");
}
__device__ inline void send(float2* to, float2 value, Barrier& barrier, int block) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          address_in(to, block)),
      "f"(value.x), "f"(value.y), "r"(address_in(&barrier, block))
      : "memory");
}

__device__ inline float half_warp_sum(float value) {
  for (int offset = 8; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ inline float warp_sum(float value) {
  return half_warp_sum(value + __shfl_xor_sync(~0u, value, 16));
}
__device__ inline float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  }
  return value;
}

// kBytes of the rows that row(i) gives on their way to shared memory, half a warp a row; those of
// null are left out.
template <int kBytes, typename Row>
__device__ inline void bring_rows(uint8_t* to, int count, const Row& row) {
#pragma unroll 1
  for (int i = threadIdx.x / 16; i < count; i += kHalfWarps) {
    const uint8_t* from = row(i);
    if (from == nullptr) continue;
#pragma unroll
    for (int at = 0; at < kBytes; at += 256) {
      const int own = at + static_cast<int>(threadIdx.x) % 16 * 16;
      if (own < kBytes) copy_ahead(to + i * kBytes + own, from + own, true);
    }
  }
}

template <typename S>
struct ClusterBlock {
  const LolaView& view;
  const DevicePiece& piece;
  const ClusterMemory<S> m;
  const int rank, unit, units, kv_head, first_head, heads;
  const SeenPairs seen;
  int first, pairs;                 // of the exact pairs
  int map_first, map_rows, mapped;  // of the rows of a head's map, and for how many there is room

  __device__ ClusterBlock(const LolaView& layer, const DevicePiece& own, uint8_t* shared)
      : view(layer),
        piece(own),
        m(shared, layer),
        rank(blockIdx.x),
        unit(blockIdx.y),
        units((layer.group + S::kHeads - 1) / S::kHeads),
        kv_head(unit / units),
        first_head(kv_head * layer.group + (unit - kv_head * units) * S::kHeads),
        heads(min(S::kHeads, (kv_head + 1) * layer.group - first_head)),
        seen{layer, own, kv_head, layer.head_scope ? first_head : kv_head} {
    const int count = seen.count(), each = share_of<S::kBlocks>(count);
    first = rank * each;
    pairs = max(min(count - first, each), 0);
    const auto map_size = static_cast<int>(layer.map.map_size);
    mapped = share_of<S::kBlocks>(map_size);
    map_first = rank * mapped;
    map_rows = max(min(map_size - map_first, mapped), 0);
  }

  __device__ int newest() const { return seen.window() - 1; }
  // The first of the block's features of a set.
  __device__ int feature(int set) const {
    return map_first + (set % planes_of(view)) * static_cast<int>(view.map.map_size);
  }

  // All that does not depend on the query, but for the pair that enters with it.
  __device__ void bring(bool linear) const {
    const int own_pairs = share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
#pragma unroll 1
    for (int v = 0; v < 2; ++v) {
      const int64_t in_window = v == 0 ? view.ring_k : view.ring_v;
      const int64_t in_cache = v == 0 ? view.cache_k : view.cache_v;
      bring_rows<S::kRow>(m.pairs + v * own_pairs * S::kRow, pairs, [&](int i) {
        return first + i == newest() ? nullptr : seen.row(first + i, in_window, in_cache);
      });
    }
#pragma unroll 1
    for (int set = -1; set < sets_of(view) && linear; ++set) {
      const bool pending = set >= planes_of(view);
      const int64_t state = pending ? view.pending_state : view.state;
      const auto* from =
          set < 0 ? reinterpret_cast<const uint8_t*>(view.query_map) : piece.memory + state;
      const int stride = set < 0 ? static_cast<int>(view.map.map_size) : view.features;
      const int begin = set < 0 ? map_first : feature(set);
      const int place = mapped * S::kHeads;
      bring_rows<4 * S::kDim>(reinterpret_cast<uint8_t*>(m.rows + (1 + set) * place * S::kDim),
                              map_rows * S::kHeads, [&](int i) {
                                const int row =
                                    (first_head + min(i % S::kHeads, heads - 1)) * stride + begin +
                                    i / S::kHeads;
                                return from + static_cast<int64_t>(row) * (4 * S::kDim);
                              });
      if (set >= 0 && threadIdx.x < map_rows * S::kHeads) {
        const int h = first_head + min(static_cast<int>(threadIdx.x) % S::kHeads, heads - 1);
        const float* sums = floats_at(piece.memory, pending ? view.pending_sum : view.sum, 0);
        copy_float_ahead(m.hidden_sums + set * place + threadIdx.x,
                         sums + h * stride + begin + threadIdx.x / S::kHeads, true);
      }
    }
    end_copies();
  }

  // The queries, rotated, and the pair that enters: it goes to the window too.
  __device__ void take_query(const AttentionRows& rows, const RopeRows& rope) const {
    const int own = newest() - first,
              own_pairs = share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity);
    const bool enters = own >= 0 && own < pairs;
    const float* q = rows.q + (int64_t{piece.row} * view.heads + first_head) * S::kDim;
    const int64_t in = (int64_t{piece.row} * view.kv_heads + kv_head) * S::kDim;
    const int count = enters ? (S::kHeads + 2) * S::kDim : S::kHeads * S::kDim;
#pragma unroll 3
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int h = i / S::kDim, c = i % S::kDim;
      const float* from = h < S::kHeads    ? q + min(h, heads - 1) * S::kDim
                          : h == S::kHeads ? rows.k + in
                                           : rows.v + in;
      const float turned = rotated(rope, from, piece.row, c);
      if (h < S::kHeads) {
        m.q[i] = turned;
        continue;
      }
      const __half stored = __float2half_rn(h == S::kHeads ? turned : from[c]);
      const bool value = h > S::kHeads;
      reinterpret_cast<__half*>(m.pairs + (value * own_pairs + own) * S::kRow)[c] = stored;
      if (unit != kv_head * units) continue;
      const int64_t slot = ring_slot(view, piece.window_slot, newest());
      uint8_t* ring =
          ring_row(view, piece.memory, value ? view.ring_v : view.ring_k, kv_head, slot);
      reinterpret_cast<__half*>(ring)[c] = stored;
    }
  }

  // What activate() makes features of goes to all blocks.
  __device__ void map_query(Barrier& mapped_all) const {
    const int lane = threadIdx.x % 16, c = lane * 8;
#pragma unroll 1
    for (int i = threadIdx.x / 16; i - i % 2 < map_rows * S::kHeads; i += kHalfWarps) {
      const int row = min(i, map_rows * S::kHeads - 1), h = row % S::kHeads;
      const int j = map_first + row / S::kHeads;
      float sum = 0.0f;
      if (c < S::kDim) {
        const Eight a = load_eight(m.rows + row * S::kDim + c);
        const Eight b = load_eight(m.q + h * S::kDim + c);
#pragma unroll
        for (int n = 0; n < 8; ++n) sum += a.v[n] * b.v[n];
      }
      sum = half_warp_sum(sum);
      if (view.map.skip) sum += m.q[h * S::kDim + j];
      if (lane < S::kBlocks && row == i) {
        send(m.phi + h * view.features + j, sum, mapped_all, lane);
      }
    }
  }

  __device__ void find_logits() const {
    const int lane = threadIdx.x % 16, c = lane * 8;
    const float scale = 1.0f / sqrtf(static_cast<float>(S::kDim));
#pragma unroll 1
    for (int i = threadIdx.x / 16; i - i % 2 < pairs; i += kHalfWarps) {
      float sums[S::kHeads] = {};
      if (c < S::kDim) {
        const Eight key = load_eight<PairType::kF16>(m.pairs + min(i, pairs - 1) * S::kRow, c);
#pragma unroll
        for (int h = 0; h < S::kHeads; ++h) {
          const Eight own = load_eight(m.q + h * S::kDim + c);
#pragma unroll
          for (int n = 0; n < 8; ++n) sums[h] += own.v[n] * key.v[n];
        }
      }
      spread_sums<S::kHeads>(sums);
      if (lane < S::kHeads && i < pairs) m.weights[i * S::kHeads + lane] = sums[0] * scale;
    }
  }

  // Logits of head h become exponentials; by a warp.
  __device__ void weigh(int h) const {
    const int lane = threadIdx.x % 32;
    float max = -INFINITY, sum = 0.0f;
#pragma unroll 1
    for (int i = lane; i < pairs; i += 32) max = fmaxf(max, m.weights[i * S::kHeads + h]);
    max = warp_max(max);
#pragma unroll 1
    for (int i = lane; i < pairs; i += 32) {
      const float weight = expf(m.weights[i * S::kHeads + h] - max);
      m.weights[i * S::kHeads + h] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) m.own[h] = max, m.own[S::kHeads + h] = sum, m.own[2 * S::kHeads + h] = 0.0f;
  }

  // Head h's features, and phi's of the block's own; by a warp, after weigh().
  __device__ void find_features(int h) const {
    float* phi = m.phi + h * view.features;
    activate<32>(view.map, static_cast<int>(view.map.map_size),
                 [&](int j) -> float& { return phi[j]; });
    __syncwarp();
    float sum = 0.0f;
#pragma unroll 1
    for (int set = 0; set < sets_of(view); ++set) {
#pragma unroll 1
      for (int i = threadIdx.x % 32; i < map_rows; i += 32) {
        sum += phi[feature(set) + i] * m.hidden_sums[(set * mapped + i) * S::kHeads + h];
      }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) m.own[2 * S::kHeads + h] = sum;
  }

  // Sums of weighted values and of hidden states, two columns a thread.
  __device__ void add_rows(bool linear) const {
    const int part = threadIdx.x / (S::kDim / 2), c = threadIdx.x % (S::kDim / 2) * 2;
    const uint8_t* values =
        m.pairs + share_of<S::kBlocks>(view.ring_capacity + view.sparse_capacity) * S::kRow;
    float2 sums[S::kHeads] = {};
#pragma unroll 2
    for (int i = part; i < pairs; i += S::kParts) {
      const float2 value =
          __half22float2(*reinterpret_cast<const __half2*>(values + i * S::kRow + c * 2));
#pragma unroll
      for (int h = 0; h < S::kHeads; ++h) {
        const float weight = m.weights[i * S::kHeads + h];
        sums[h].x += weight * value.x;
        sums[h].y += weight * value.y;
      }
    }
#pragma unroll
    for (int h = 0; h < S::kHeads; ++h) {
      *reinterpret_cast<float2*>(m.exact + (part * S::kHeads + h) * S::kDim + c) = sums[h];
    }
    const int h = part % S::kHeads;
    float2 sum = {0.0f, 0.0f};
#pragma unroll 1
    for (int set = 0; set < sets_of(view) && linear; ++set) {
      const float* phi = m.phi + h * view.features + feature(set);
      const float* row = m.rows + ((1 + set) * mapped * S::kHeads + h) * S::kDim + c;
#pragma unroll 2
      for (int i = part / S::kHeads; i < map_rows; i += S::kParts / S::kHeads) {
        const float2 value = *reinterpret_cast<const float2*>(row + i * S::kHeads * S::kDim);
        sum.x += phi[i] * value.x;
        sum.y += phi[i] * value.y;
      }
    }
    *reinterpret_cast<float2*>(m.linear + part * S::kDim + c) = sum;
  }

  // The block's sums to those that join them, and its numbers to all.
  __device__ void leave(Barrier& joined) const {
#pragma unroll
    for (int o = threadIdx.x; o < S::kHeads * S::kDim; o += kThreads) {
      float2 sum = {0.0f, 0.0f};
#pragma unroll
      for (int part = 0; part < S::kParts; ++part) {
        sum.x += m.exact[part * S::kHeads * S::kDim + o];
      }
#pragma unroll
      for (int part = 0; part < S::kParts / S::kHeads; ++part) {
        sum.y += m.linear[part * S::kHeads * S::kDim + o];
      }
      send(m.sums + rank * S::kOutputs + o % S::kOutputs, sum, joined, o / S::kOutputs);
    }
    constexpr int kEach = kNumbers * S::kHeads;
    for (int i = threadIdx.x; i < S::kBlocks * kEach; i += kThreads) {
      send(m.numbers + rank * kEach + i % kEach, m.own[i % kEach], joined, i / kEach);
    }
  }

  // The outputs that the block joins: a warp has some of one head, each lane first the numbers of a
  // block, then an output.
  __device__ void join(const AttentionOutput& output, bool linear, const float* gates) const {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int o = threadIdx.x; o < S::kOutputs; o += kThreads) {
      const int column = rank * S::kOutputs + o, h = column / S::kDim;
      const float* own = m.numbers + min(lane, S::kBlocks - 1) * kNumbers * S::kHeads + h;
      const bool there = lane < S::kBlocks;
      const float max = warp_max(own[0]);
      const float factor = there ? expf(own[0] - max) : 0.0f;
      const float sum = warp_sum(there ? factor * own[S::kHeads] : 0.0f);
      const float phi = warp_sum(there ? own[2 * S::kHeads] : 0.0f);
      float2 y = {0.0f, 0.0f};
#pragma unroll 4
      for (int block = 0; block < S::kBlocks; ++block) {
        const float2 part = m.sums[block * S::kOutputs + o];
        y.x += __shfl_sync(~0u, factor, block) * part.x;
        y.y += part.y;
      }
      if (h >= heads) continue;
      const MixingWeights weights = linear ? mixing_weights(view.mixing, view.affine, gates[h], max)
                                           : MixingWeights{1.0f, 0.0f};
      const float share = 1.0f / (weights.exact * sum + weights.linear * phi);
      output.put_rounded(piece.row, first_head * S::kDim + column,
                         share * (weights.exact * y.x + weights.linear * y.y));
    }
  }
};
#endif

template <typename S>
__global__ void __launch_bounds__(kThreads, 2)
    cluster_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                   const __grid_constant__ AttentionRows rows,
                   const __grid_constant__ RopeRows rope,
                   const __grid_constant__ ProductCopy copy) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(16) uint8_t cluster_shared[];
  __shared__ float gates[S::kHeads];
  __shared__ Barrier mapped, joined;
  const auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) {
    mapped.set(1), joined.set(1);
    show_barriers();
    mapped.expect(static_cast<int>(view.map.map_size) * S::kHeads * 4);
    joined.expect(S::kBlocks * (S::kOutputs * 8 + kNumbers * S::kHeads * 4));
  }
  cluster.barrier_arrive();
  const DevicePiece piece = pieces[blockIdx.z];
  const bool linear = piece.absorbed > 0;
  const ClusterBlock<S> block(view, piece, cluster_shared);
  block.bring(linear);
  const int h = threadIdx.x;
  if (h < S::kHeads) gates[h] = view.gate[block.first_head + min(h, block.heads - 1)];
  cluster.barrier_wait();
  wait_for_previous_kernel();
  block.take_query(rows, rope);
  wait_for_copies<0>();
  __syncthreads();
  if (linear) block.map_query(mapped);
  block.find_logits();
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (warp < S::kHeads) {
    block.weigh(warp);
    if (linear) {
      mapped.wait(0);
      block.find_features(warp);
    }
  }
  __syncthreads();
  block.add_rows(linear);
  __syncthreads();
  block.leave(joined);
  joined.wait(0);
  const AttentionOutput output{rows.out, copy, view.heads * S::kDim};
  block.join(output, linear, gates);
  if (block.first_head == 0 && block.rank == 0) output.pad(piece.row);
#endif
}

// Calls f.template operator()<S>() with the shape of the heads.
template <typename F>
auto with_shape(const LolaView& view, const F& f) {
  const int heads = view.head_scope || view.group == 1 ? 1 : view.group == 2 ? 2 : 4;
  if (view.head_dim == 64) {
    return heads == 1   ? f.template operator()<Shape<1, 64>>()
           : heads == 2 ? f.template operator()<Shape<2, 64>>()
                        : f.template operator()<Shape<4, 64>>();
  }
  return heads == 1   ? f.template operator()<Shape<1, 128>>()
         : heads == 2 ? f.template operator()<Shape<2, 128>>()
                      : f.template operator()<Shape<4, 128>>();
}

template <typename S>
int64_t shared_bytes(const LolaView& view) {
  return reinterpret_cast<int64_t>(ClusterMemory<S>(nullptr, view).end);
}

}  // namespace

bool answers_in_cluster(const CudaDevice& device, const LolaView& view, const PieceSpan& pieces) {
  return kHasWide && device.has_wgmma() && pieces.count == 1 && view.type == PairType::kF16 &&
         (view.head_dim == 64 || view.head_dim == 128) &&
         with_shape(view, [&]<typename S>() { return shared_bytes<S>(view) <= kMostShared; });
}

void lola_attend_cluster(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                         const AttentionRows& rows, const RopeRows& rope, const ProductCopy& copy) {
  with_shape(view, [&]<typename S>() {
    cuda_check(
        cudaFuncSetAttribute(cluster_kernel<S>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cluster of a kernel");
    const int64_t units = view.kv_heads * ceil_div(view.group, S::kHeads);
    launch_cluster(stream, cluster_kernel<S>, grid_of(S::kBlocks, units, pieces.count), kThreads,
                   shared_bytes<S>(view), S::kBlocks, view, pieces.data, rows, rope, copy);
  });
}

}  // namespace lola

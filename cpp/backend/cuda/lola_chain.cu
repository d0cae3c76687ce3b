// All boundaries of one session in one kernel, where a multiprocessor has room for what competes.
//
// A block has kColumns columns of one head's Hs and of the values, and with them s and the features
// of every pair that competes now or next. So it absorbs without the others; of them it needs the
// parts of the recall errors that lie in their columns. These are posted in words that bring the
// number of their boundary along: whoever reads one sees whether it is there, with no barrier.
#include "backend/cuda/lola_boundary.cuh"
#include "backend/cuda/lola_choice.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = kGroupColumns;
constexpr int kStateStride = weighted_stride<float>(kColumns);
constexpr int kScored = kThreads / 2;  // pairs at a time: half of a block asks every other head

// Shared memory of a block. Pairs lie in slots; there are as many as compete at one boundary and
// leave the window at the next.
template <PairType type>
struct ChainMemory {
  using Element = typename Staged<type>::Element;
  static constexpr int kStride = weighted_stride<Element>(kColumns);
  int slots, features, phi_stride;  // features: with zeros, whole tiles of rows of Hs
  float* phi;      // [slots, phi_stride]
  float* state;    // [features, kStateStride]
  float* sum;      // [features]
  Element* v;      // [slots, kStride]
  uint32_t* keys;  // [most], in the order of the scores
  int* order;      // [2, most]: slots of the eligible pairs, of this boundary and the next
  int* ring;       // [slots]: the free slots, the first taken first
  int* numbers;    // [slots], of the pairs
  float* norms;    // [slots], of their keys
  int* warps;      // [kWarps]

  static __host__ __device__ int slots_of(const LolaView& view, int64_t most) {
    return static_cast<int>(2 * most - view.sparse_capacity);
  }
  static __host__ __device__ int padded(int features) {
    return (features + kWarpRows - 1) / kWarpRows * kWarpRows;
  }
  static __host__ __device__ int phi_stride_of(int features) {
    return features + (32 + 8 - features % 32) % 32;
  }
  __device__ ChainMemory(float* shared, const LolaView& view, int64_t most)
      : slots(slots_of(view, most)),
        features(padded(view.features)),
        phi_stride(phi_stride_of(features)),
        phi(shared),
        state(phi + slots * phi_stride),
        sum(state + features * kStateStride),
        v(reinterpret_cast<Element*>(sum + features)),
        keys(reinterpret_cast<uint32_t*>(v + slots * kStride)),
        order(reinterpret_cast<int*>(keys + padded_choice(most))),
        ring(order + 2 * most),
        numbers(ring + slots),
        norms(reinterpret_cast<float*>(numbers + slots)),
        warps(reinterpret_cast<int*>(norms + slots)) {}
  static int64_t bytes(const LolaView& view, int64_t most) {
    const int64_t slots = slots_of(view, most), features = padded(view.features);
    return slots * (4 * (phi_stride_of(padded(view.features)) + 3) +
                    kStride * static_cast<int64_t>(sizeof(Element))) +
           4 * (features * (kStateStride + 1) + padded_choice(most) + 2 * most + kWarps);
  }
};

__device__ inline void post(uint64_t* to, float value, uint32_t tag) {
  const uint64_t word = static_cast<uint64_t>(tag) << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ inline uint64_t peek(const uint64_t* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}

__device__ inline Eight staged_eight(const float* from) { return load_eight(from); }
__device__ inline Eight staged_eight(const __half* from) {
  return load_eight<PairType::kF16>(reinterpret_cast<const uint8_t*>(from), 0);
}

// A block at work.
template <PairType type>
struct ChainBlock {
  using Memory = ChainMemory<type>;
  const LolaView& view;
  const RunScratch& scratch;
  const Memory m;
  const int head, column;  // the first of the block's
  const Owner owner;
  const Lane lane;
  const int warp;

  __device__ ChainBlock(float* shared, const LolaView& lola, const RunScratch& run)
      : view(lola),
        scratch(run),
        m(shared, lola, run.most),
        head(blockIdx.y),
        column(blockIdx.x * kColumns),
        owner(lola, lola.owner_of(blockIdx.y)),
        warp(static_cast<int>(threadIdx.x) / 32) {}

  __device__ int slot_at(int place) const {
    return m.ring[place >= m.slots ? place - m.slots : place];
  }
  __device__ int owner_heads() const { return view.head_scope ? 1 : view.group; }
  __device__ int parts() const { return view.head_dim / kColumns; }
  // The words of a boundary for pair 0, of one head of the owner in one part of the columns.
  __device__ uint64_t* words(uint32_t tag, int own_head, int part) const {
    const int64_t first = owner.index * owner_heads() + own_head;
    return scratch.words +
           ((tag % 2 * view.heads + first) * parts() + part) * scratch.most;
  }

  __device__ void load_state(const HiddenRows& from) const {
    constexpr int kUnits = kColumns / 4;
    for (int i = threadIdx.x; i < m.features * kUnits; i += kThreads) {
      const int j = i / kUnits, c = i % kUnits * 4;
      const bool there = j < view.features;
      const int64_t at = there ? static_cast<int64_t>(j) * view.head_dim + column + c : 0;
      copy_ahead(m.state + j * kStateStride + c, from.state + at, there);
    }
    for (int j = threadIdx.x; j < m.features; j += kThreads) {
      const bool there = j < view.features;
      copy_float_ahead(m.sum + j, from.sum + (there ? j : 0), there);
    }
  }

  // Pairs [number, number + count) are on their way to the free slots from `place` on, which are
  // noted in order.
  __device__ void load_pairs(const DeviceBoundary& boundary, int number, int count, int place,
                             int* order) const {
    constexpr int kUnit = 16 / sizeof(typename Memory::Element);
    const int own = static_cast<int>(threadIdx.x) % 32, stride = feature_stride(view.features);
#pragma unroll 2
    for (int i = warp; i < count; i += kWarps) {
      const int slot = slot_at(place + i);
      const int64_t row = head * scratch.rows + boundary.feature_row + number + i;
      for (int c = own * 4; c < m.features; c += 128) {
        copy_ahead(m.phi + slot * m.phi_stride + c,
                   scratch.key_features + row * stride + (c < stride ? c : 0), c < stride);
      }
      const uint8_t* value = numbered_row(view, scratch, boundary.memory, boundary.numbers, owner,
                                          number + i, true);
      if (own < kColumns / kUnit) {
        typename Memory::Element* at = m.v + slot * Memory::kStride + own * kUnit;
        const int c = column + own * kUnit;
        if constexpr (type == PairType::kQ8_0) {
          *reinterpret_cast<float4*>(at) = load_four<type>(value, c);
        } else {
          copy_ahead(at, value + c * sizeof(*at), true);
        }
      }
      if (own > 0) continue;
      copy_float_ahead(m.norms + slot, scratch.key_norms + row, true);
      m.numbers[slot] = number + i;
      order[i] = slot;
    }
  }

  // y = phi'Hs and sum = phi's of a lane's rows, in these slots.
  __device__ void recall(const int slots[2], RowSums<1>& y, float sum[2]) const {
    const float *a = m.phi + slots[0] * m.phi_stride + lane.quarter * 2,
                *b = m.phi + slots[1] * m.phi_stride + lane.quarter * 2;
    sum[0] = sum[1] = 0.0f;
#pragma unroll 4
    for (int j = 0; j < m.features; j += 8) {
      const float2 x = *reinterpret_cast<const float2*>(a + j),
                   z = *reinterpret_cast<const float2*>(b + j),
                   s = *reinterpret_cast<const float2*>(m.sum + j + lane.quarter * 2);
      add_weighted<1, false>(lane, split_rows(x.x, z.x, x.y, z.y), m.state + j * kStateStride,
                             kStateStride, 0, kColumns, y);
      sum[0] += x.x * s.x + x.y * s.y;
      sum[1] += z.x * s.x + z.y * s.y;
    }
    over_row(sum, [](float p, float q) { return p + q; });
  }

  // The recall errors of the eligible pairs, in this block's columns, go to all blocks of the owner.
  __device__ void post_errors(const int* order, int all, bool empty, uint32_t tag) const {
    uint64_t* to = words(tag, view.head_scope ? 0 : head % view.group, column / kColumns);
#pragma unroll 1
    for (int begin = warp * kWarpRows; begin < all; begin += kWarps * kWarpRows) {
      const int row = begin + lane.row;
      const int slots[2] = {order[min(row, all - 1)], order[min(row + 8, all - 1)]};
      RowSums<1> y;
      float sum[2] = {1.0f, 1.0f}, squares[2] = {};
      if (!empty) recall(slots, y, sum);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Eight value = staged_eight(m.v + slots[i] * Memory::kStride + lane.quarter * 8);
        const float factor = 1.0f / sum[i];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float difference = y.at(0, i, j) * factor - value.v[j];
          squares[i] += difference * difference;
        }
      }
      over_row(squares, [](float p, float q) { return p + q; });
      for (int i = 0; i < 2; ++i) {
        if (lane.quarter == 0 && row + 8 * i < all) post(to + row + 8 * i, squares[i], tag);
      }
    }
  }

  // errors = those of pair i for two heads of the owner, once all blocks have posted them.
  __device__ void await_errors(int i, const int heads[2], uint32_t tag, float errors[2]) const {
    constexpr int kParts = 4;  // at a time
    errors[0] = errors[1] = 0.0f;
#pragma unroll 1
    for (int part = 0; part < parts(); part += kParts) {
      uint64_t word[2 * kParts];
      bool there;
      do {
        there = true;
#pragma unroll
        for (int n = 0; n < 2 * kParts; ++n) {
          word[n] = peek(words(tag, heads[n / kParts], min(part + n % kParts, parts() - 1)) + i);
        }
#pragma unroll
        for (int n = 0; n < 2 * kParts; ++n) there = there && word[n] >> 32 == tag;
      } while (!there);
#pragma unroll
      for (int n = 0; n < 2 * kParts; ++n) {
        if (part + n % kParts >= parts()) continue;
        errors[n / kParts] += __uint_as_float(static_cast<uint32_t>(word[n]));
      }
    }
  }

  // m.keys = the largest scores that the owner's heads give. Begins and ends with a barrier, before
  // which m.keys were reset.
  __device__ void rank_keys(const DeviceBoundary& boundary, const int* order, int all, int policy,
                            uint32_t tag) const {
    const int most = owner_heads() - 1, half = static_cast<int>(threadIdx.x) / kScored;
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % kScored; i < all; i += kScored) {
      const int slot = order[i];
      const int64_t position =
          position_of(view, boundary.memory, boundary.numbers, owner.index, m.numbers[slot]);
#pragma unroll 1
      for (int h = half; h <= most; h += 4) {
        const int heads[2] = {h, min(h + 2, most)};
        float errors[2];
        await_errors(i, heads, tag, errors);
        float best = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int64_t own = owner.index * owner_heads() + heads[n];
          const float score = score_of(policy, {.recall_error = errors[n],
                                                .key_norm2 = m.norms[slot],
                                                .kappa = view.kappa[own],
                                                .head_dim = view.head_dim,
                                                .position = position,
                                                .age = boundary.seen - position,
                                                .head = own,
                                                .seed = view.seed});
          if (score > best) best = score;  // never true of a NaN
        }
        atomicMax(m.keys + i, rank_key(best));
      }
    }
    __syncthreads();
  }

  // Free slots from `place` on are those of the pairs that are lost, in order; next has the others.
  // Returns how many are lost.
  __device__ int choose(const DeviceBoundary& boundary, const int* order, int all, int place,
                        int* next) const {
    const int capacity = static_cast<int>(view.sparse_capacity);
    const bool compete = all > capacity;
    const bool writes = column == 0 && (view.head_scope || head % view.group == 0);
    const int64_t part = cache_part(view, boundary.to, owner.index);
    int all_lost = 0;
#pragma unroll 1
    for (int begin = 0; begin < all; begin += kThreads) {
      const int i = begin + static_cast<int>(threadIdx.x);
      const bool keeps = i < all && (!compete || rank_of(m.keys, all, i) < capacity);
      int total;
      const int lost = all_lost + count_before<kWarps>(i < all && !keeps, m.warps, total);
      all_lost += total;
      if (i >= all) continue;
      const int slot = order[i], at = place + lost;
      if (!keeps) {
        m.ring[at >= m.slots ? at - m.slots : at] = slot;
        continue;
      }
      next[i - lost] = slot;
      if (!writes) continue;
      scratch.caches[part + i - lost] = m.numbers[slot];
      scratch.scores[part + i - lost] = compete ? score_of_key(m.keys[i]) : 0.0f;
    }
    return all_lost;
  }

  // Rows of Hs from `first` on gain the pairs in the slots from `place` on; they go to `to` too.
  __device__ void absorb_rows(int first, int place, int count, float* to) const {
    RowSums<1> sums;
#pragma unroll 2
    for (int p = 0; p < count; p += 8) {
      const int own = p + lane.quarter * 2;
      const bool one = own < count, two = own + 1 < count;
      const int slots[2] = {slot_at(place + min(own, count - 1)),
                            slot_at(place + min(own + 1, count - 1))};
      const float *a = m.phi + slots[0] * m.phi_stride + first + lane.row,
                  *b = m.phi + slots[1] * m.phi_stride + first + lane.row;
      const SplitRows weights = split_rows(one ? a[0] : 0.0f, one ? a[8] : 0.0f,
                                           two ? b[0] : 0.0f, two ? b[8] : 0.0f);
      const float4 x = four_at(m.v + slots[0] * Memory::kStride + lane.row * 4),
                   y = four_at(m.v + slots[1] * Memory::kStride + lane.row * 4);
      const float rows[2][4] = {{x.x, x.y, x.z, x.w}, {y.x, y.y, y.z, y.w}};
      add_products<4, type == PairType::kF16>(sums.part[0], weights, rows[0], rows[1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = first + lane.row + i / 2 * 8, c = lane.quarter * 8 + i % 2 * 4;
      auto* at = reinterpret_cast<float4*>(m.state + j * kStateStride + c);
      float4 four = *at;
      four.x += sums.at(0, i / 2, i % 2 * 4), four.y += sums.at(0, i / 2, i % 2 * 4 + 1);
      four.z += sums.at(0, i / 2, i % 2 * 4 + 2), four.w += sums.at(0, i / 2, i % 2 * 4 + 3);
      *at = four;
      if (j >= view.features) continue;
      *reinterpret_cast<float4*>(to + static_cast<int64_t>(j) * view.head_dim + column + c) = four;
    }
  }

  // The next version of Hs and s: with the pairs in the slots from `place` on.
  __device__ void absorb(const HiddenRows& to, int place, int count) const {
    const int tiles = m.features / kWarpRows;
#pragma unroll 1
    for (int part = warp; part < tiles + (m.features + 31) / 32; part += kWarps) {
      if (part < tiles) {
        absorb_rows(part * kWarpRows, place, count, const_cast<float*>(to.state));
        continue;
      }
      const int j = (part - tiles) * 32 + static_cast<int>(threadIdx.x) % 32;
      if (j >= m.features) continue;
      float sum = 0.0f;
#pragma unroll 8
      for (int p = 0; p < count; ++p) sum += m.phi[slot_at(place + p) * m.phi_stride + j];
      sum += m.sum[j];
      m.sum[j] = sum;
      if (column == 0 && j < view.features) const_cast<float*>(to.sum)[j] = sum;
    }
  }
};

// Blocks of all columns of all heads, which run at the same time.
template <PairType type>
__global__ void __launch_bounds__(kThreads, 1)
    chain_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries, int count,
                 const __grid_constant__ RunScratch scratch, int policy) {
  extern __shared__ __align__(16) float shared[];
  wait_for_previous_kernel();
  const ChainBlock<type> block(shared, view, scratch);
  const auto& m = block.m;
  DeviceBoundary boundary = boundaries[0], next = boundaries[1];
  for (int i = threadIdx.x; i < m.slots; i += kThreads) m.ring[i] = i;
  __syncthreads();
  block.load_state(hidden_of(view, boundary.memory, scratch, boundary.from, block.head));
  int* order[2] = {m.order, m.order + scratch.most};
  int taken = boundary.cached + boundary.leaving, freed = 0;  // places in the ring
  block.load_pairs(boundary, 0, boundary.cached, 0, order[0]);
  block.load_pairs(boundary, boundary.first, boundary.leaving, boundary.cached,
                   order[0] + boundary.cached);
  block.load_pairs(next, next.first, next.leaving, taken, order[1] + next.cached);
  taken += next.leaving;
  end_copies();
  wait_for_copies<0>();
  __syncthreads();
  uint32_t tag = 0;
#pragma unroll 1
  for (int t = 0; t < count; ++t) {
    const DeviceBoundary after = boundaries[min(t + 2, count - 1)];
    const int all = boundary.cached + boundary.leaving;
    if (all > view.sparse_capacity) {
      for (int i = threadIdx.x; i < padded_choice(all); i += kThreads) {
        m.keys[i] = i < all ? rank_key(-INFINITY) : 0;
      }
      block.post_errors(order[0], all, boundary.absorbed == 0, ++tag);
      block.rank_keys(boundary, order[0], all, policy, tag);
    }
    const int lost = block.choose(boundary, order[0], all, freed, order[1]);
    __syncthreads();
    block.absorb(hidden_of(view, boundary.memory, scratch, boundary.to, block.head), freed, lost);
    wait_for_copies<0>();
    __syncthreads();
    if (t + 2 < count) {
      if (taken >= m.slots) taken -= m.slots;
      block.load_pairs(after, after.first, after.leaving, taken, order[0] + after.cached);
      taken += after.leaving;
      end_copies();
    }
    freed = freed + lost >= m.slots ? freed + lost - m.slots : freed + lost;
    boundary = next, next = after;
    std::swap(order[0], order[1]);
  }
}

int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  cuda_check(cudaGetDevice(&device), "device");
  cuda_check(cudaDeviceGetAttribute(&value, name, device), "device");
  return value;
}

}  // namespace

bool pass_chain(const Stream& stream, const LolaView& view, const CachePolicy& policy,
                const BoundarySpan& boundaries, const RunScratch& scratch) {
  if (boundaries.count < 2 || policy.recall_from != RecallFrom::kStateBefore ||
      view.sparse_capacity == 0 || view.pending_state >= 0 || view.head_dim % kColumns != 0) {
    return false;
  }
  bool passed = false;
  with_pair_type(view.type, [&]<PairType type>() {
    const int64_t bytes = ChainMemory<type>::bytes(view, scratch.most);
    const int parts = view.head_dim / kColumns;
    passed = attribute(cudaDevAttrCooperativeLaunch) != 0 &&
             parts * view.heads <= attribute(cudaDevAttrMultiProcessorCount) &&
             bytes <= attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (!passed) return;
    cuda_check(cudaMemsetAsync(scratch.words, 0, chain_words(view, scratch.most) * sizeof(uint64_t),
                               stream.handle),
               "words of a chain");
    launch_together(stream, chain_kernel<type>, grid_of(parts, view.heads), kThreads, bytes, view,
                    boundaries.data, boundaries.count, scratch, index_of(policy));
  });
  return passed;
}

}  // namespace lola

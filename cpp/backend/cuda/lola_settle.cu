// Each owner ranks its eligible pairs by their scores; those it does not keep are absorbed.
#include <algorithm>

#include "backend/cuda/absorbed_sums.cuh"
#include "backend/cuda/last_block.cuh"
#include "backend/cuda/lola_boundary.cuh"
#include "backend/cuda/lola_choice.cuh"
#include "backend/cuda/lola_keep.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kFeatures = 32;  // of a block
constexpr int kPhiStride = kFeatures + 4;
constexpr int kPairs = 64;  // absorbed at a time
constexpr int kRowWarps = kFeatures / kWarpRows, kColumnWarps = kWarps / kRowWarps;

template <int kDim>
constexpr int kGroups = kDim / kGroupColumns / kColumnWarps;  // of a warp

// Shared memory of a block.
template <PairType type>
struct SettleMemory {
  using Element = typename Staged<type>::Element;
  float* phi;      // [kPairs, kPhiStride]
  Element* v;      // [kPairs, stride]
  uint32_t* keys;  // [most], in the order of the scores
  int* numbers;    // [most], of the eligible pairs
  int* lost;       // [most], numbers too
  int stride;

  __device__ SettleMemory(float* shared, int head_dim, const RunScratch& scratch, int64_t owner)
      : phi(shared),
        v(reinterpret_cast<Element*>(phi + kPairs * kPhiStride)),
        stride(weighted_stride<Element>(head_dim)) {
    // In device memory all blocks of an owner write the same numbers to the same places.
    int* choice = scratch.most <= kSharedChoice
                      ? reinterpret_cast<int*>(v + kPairs * stride)
                      : scratch.choice + owner * kChoice * padded_choice(scratch.most);
    keys = reinterpret_cast<uint32_t*>(choice);
    numbers = choice + padded_choice(scratch.most);
    lost = numbers + padded_choice(scratch.most);
  }
  static int64_t bytes(int head_dim, int64_t most) {
    return 4 * kPairs * kPhiStride +
           kPairs * weighted_stride<Element>(head_dim) * static_cast<int64_t>(sizeof(Element)) +
           (most <= kSharedChoice ? 4 * kChoice * padded_choice(most) : 0);
  }
};

// The largest score that a query head of the group gives an owner's pair i.
__device__ inline float largest_score(const LolaView& view, const RunScratch& scratch, int boundary,
                                      int owner, int i) {
  constexpr int kAtOnce = 4;
  const int heads = view.head_scope ? 1 : view.group;
  const float* scores =
      scratch.head_scores +
      (static_cast<int64_t>(boundary) * view.heads + owner * heads) * scratch.most + i;
  float best = -INFINITY;
#pragma unroll 1
  for (int h = 0; h < heads; h += kAtOnce) {
    float score[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) score[n] = scores[min(h + n, heads - 1) * scratch.most];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (score[n] > best) best = score[n];  // never true of a NaN
    }
  }
  return best;
}

// m.numbers and, where they compete, m.keys of the eligible pairs.
template <PairType type>
__device__ inline void load_eligible(const LolaView& view, const RunScratch& scratch,
                                     const DeviceBoundary& boundary, int owner, bool compete,
                                     const SettleMemory<type>& m) {
  const int count = boundary.cached + boundary.leaving;
#pragma unroll 1
  for (int i = threadIdx.x; i < padded_choice(count); i += kThreads) {
    const int pair = min(i, count - 1);
    const int number = eligible_number(view, scratch, boundary, owner, pair);
    const float score = compete ? largest_score(view, scratch, blockIdx.z, owner, pair) : 0.0f;
    m.numbers[i] = number;
    m.keys[i] = i < count ? rank_key(score) : 0;
  }
  __syncthreads();
}

// Lists the pairs that are lost, in order; returns their number. The next version of the owner's
// sparse cache is written by the block that `writes`. in_place: that version is the memory itself,
// where positions and scores are written; the numbers of the pairs that stay are left in m.numbers.
template <bool in_place, PairType type>
__device__ inline int choose(const LolaView& view, const RunScratch& scratch,
                             const DeviceBoundary& boundary, int owner, bool writes,
                             const SettleMemory<type>& m) {
  __shared__ int warps[kWarps];
  const int count = boundary.cached + boundary.leaving;
  const int capacity = static_cast<int>(view.sparse_capacity);
  const bool compete = capacity > 0 && count > capacity;
  load_eligible(view, scratch, boundary, owner, compete, m);
  const int64_t next =
      in_place ? owner * view.sparse_capacity : cache_part(view, boundary.to, owner);
  float* scores =
      in_place ? floats_at(boundary.memory, view.cache_score, next) : scratch.scores + next;
  auto* positions = reinterpret_cast<int64_t*>(boundary.memory + view.cache_position) + next;
  int all_lost = 0;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const bool keeps =
        i < count && (compete ? rank_of<1>(m.keys, count, i) < capacity : capacity > 0);
    const int number = m.numbers[min(i, count - 1)];
    // Whatever takes this place is written after all of the batch have read theirs.
    int64_t position = 0;
    if (in_place && keeps && writes) {
      position = position_of(view, boundary.memory, boundary.numbers, owner, number);
    }
    int total;
    const int lost = all_lost + count_before<kWarps>(i < count && !keeps, warps, total);
    all_lost += total;
    if (i >= count) continue;
    if (!keeps) m.lost[lost] = number;
    if (keeps && in_place) m.numbers[i - lost] = number;
    if (keeps && writes) {
      if (in_place) positions[i - lost] = position;
      if (!in_place) scratch.caches[next + i - lost] = number;
      scores[i - lost] = compete ? score_of_key(m.keys[i]) : 0.0f;
    }
  }
  __syncthreads();
  return all_lost;
}

// What a lane has of a block's features: rows of Hs of its warp, eight columns of each group.
template <int kDim>
struct FeaturePart {
  Lane lane;
  int row, column;  // the first of the warp

  __device__ FeaturePart()
      : row(static_cast<int>(threadIdx.x) / 32 % kRowWarps * kWarpRows),
        column(static_cast<int>(threadIdx.x) / 32 / kRowWarps * kGroups<kDim> * kGroupColumns) {}
  // Where part n is in Hs [f, d]; negative where there is none.
  __device__ int64_t place(int n, int first, int f, int d) const {
    const int j = first + row + lane.row + n % 2 * 8;
    const int c = column + n / 2 * kGroupColumns + lane.quarter * 8;
    return j < f && c < d ? static_cast<int64_t>(j) * d + c : -1;
  }
};

// sums = phi v' over pairs number(i), and of phi those over every kWarps-th pair, of feature
// threadIdx.x % 32. features: of pair number 0, the block's.
template <PairType type, int kDim, typename Number>
__device__ inline float absorb(const LolaView& view, const RunScratch& scratch,
                               const DeviceBoundary& boundary, const Owner& owner,
                               const float* features, int width, int count, const Number& number,
                               const SettleMemory<type>& m, const FeaturePart<kDim>& part,
                               RowSums<kGroups<kDim>>& sums) {
  const int d = view.head_dim, stride = feature_stride(view.features);
  const int quarter = part.lane.quarter;
  float sum = 0.0f;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kPairs) {
    const int pairs = min(kPairs, count - begin);
    stage_rows<PairType::kF32, kThreads, kPairs, kFeatures>(
        m.phi, kPhiStride, kFeatures, width, pairs, [&](int p) {
          return reinterpret_cast<const uint8_t*>(features +
                                                  static_cast<int64_t>(number(begin + p)) * stride);
        });
    stage_rows<type, kThreads, kPairs, kDim>(m.v, m.stride, d, d, pairs, [&](int p) {
      return numbered_row(view, scratch, boundary.memory, boundary.numbers, owner,
                          number(begin + p), true);
    });
    end_copies();
    wait_for_copies<0>();
    __syncthreads();
    for (int p = threadIdx.x / 32; p < kPairs; p += kWarps) {
      sum += m.phi[p * kPhiStride + threadIdx.x % 32];
    }
#pragma unroll 2
    for (int p = 0; p < kPairs; p += 8) {
      const float *a = m.phi + (p + quarter * 2) * kPhiStride + part.row + part.lane.row,
                  *b = a + kPhiStride;
      add_weighted<kGroups<kDim>, type == PairType::kF16>(
          part.lane, split_rows(a[0], a[8], b[0], b[8]), m.v + p * m.stride, m.stride, part.column,
          d, sums);
    }
    __syncthreads();
  }
  return sum;
}

// A block per kFeatures features of a head. The pairs of a boundary are summed first and added
// once.
template <PairType type, int kDim, Absorb what>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 2 : 1)
    settle_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                  const __grid_constant__ RunScratch scratch) {
  extern __shared__ __align__(16) float shared[];
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  wait_for_previous_kernel();
  constexpr bool kAll = what == Absorb::kImagined, kInPlace = what == Absorb::kLostInPlace;
  constexpr int kParts = 2 * kGroups<kDim>;
  const int all = boundary.cached + boundary.leaving;
  if (boundary.memory == nullptr || (kAll && all <= view.sparse_capacity)) return;
  const int head = blockIdx.y, d = view.head_dim, f = view.features, first = blockIdx.x * kFeatures;
  const Owner owner(view, view.owner_of(head));
  const FeaturePart<kDim> part;
  const HiddenRows from = hidden_of(view, boundary.memory, scratch, boundary.from, head);
  EightColumns main[kParts], pending[kParts];
#pragma unroll
  for (int n = 0; n < kParts; ++n) {
    const int64_t at = part.place(n, first, f, d);
    if (at < 0) continue;
    main[n] = EightColumns(from.state + at);
    if (from.pending_state != nullptr) pending[n] = EightColumns(from.pending_state + at);
  }
  const int own = min(first + static_cast<int>(threadIdx.x), f - 1);  // of the sums
  const float main_sum = from.sum[own];
  const float pending_sum = from.pending_sum == nullptr ? 0.0f : from.pending_sum[own];
  const SettleMemory<type> m(shared, d, scratch,
                             static_cast<int64_t>(blockIdx.z) * view.owners() + owner.index);
  const bool speaks = view.head_scope || head % view.group == 0;  // for its owner
  const int count =
      kAll ? all
           : choose<kInPlace>(view, scratch, boundary, owner.index, speaks && blockIdx.x == 0, m);
  const int stride = feature_stride(f);
  RowSums<kGroups<kDim>> sums;
  float sum = absorb<type>(
      view, scratch, boundary, owner,
      scratch.key_features + (head * scratch.rows + boundary.feature_row) * stride + first,
      stride - first, count,
      [&](int i) {
        return kAll ? eligible_number(view, scratch, boundary, owner.index, i) : m.lost[i];
      },
      m, part, sums);
  HiddenRows to = hidden_of(view, boundary.memory, scratch, boundary.to, head);
  if (kAll) {
    to = hidden_at(view, scratch.imagined, blockIdx.z, head);
    to.pending_state = to.pending_sum = nullptr;
  } else if (!kInPlace && count == 0 && to.state == from.state) {
    return;
  }
  bool last = false;  // of those that read the owner's values
  if constexpr (kInPlace) {
    last = is_last_block(scratch.counters + blockIdx.z * view.owners() + owner.index,
                         gridDim.x * (view.head_scope ? 1 : view.group));
  }
  const bool flush = (boundary.absorbed + count) / kFlushPairs > boundary.absorbed / kFlushPairs;
#pragma unroll
  for (int n = 0; n < kParts; ++n) {
    const int64_t at = part.place(n, first, f, d);
    if (at < 0) continue;
    const EightColumns absorbed([&](int i) { return sums.at(n / 2, n % 2, i); });
    write_sums(main[n], pending[n], absorbed, flush, moved(to.state, at),
               moved(to.pending_state, at));
  }
  float* parts = m.phi;  // [kWarps, 32]; nobody reads the features any more
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < kFeatures && first + static_cast<int>(threadIdx.x) < f) {
    for (int w = 1; w < kWarps; ++w) sum += parts[w * 32 + threadIdx.x];
    write_sums(main_sum, pending_sum, sum, flush, moved(to.sum, own), moved(to.pending_sum, own));
  }
  if constexpr (kInPlace) {
    const bool keys = speaks && blockIdx.x == gridDim.x - 1;  // nobody reads those
#pragma unroll 1
    for (int value = 0; value < 2; ++value) {
      if (value == 0 ? keys : last) {
        move_rows<kThreads>(view, scratch, boundary.memory, boundary.numbers, owner, m.numbers,
                            all - count, value == 1);
      }
    }
  }
}

template <Absorb what>
void settle(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
            const RunScratch& scratch) {
  with_tile(view.head_dim, [&]<int kDim>() {
    with_pair_type(view.type, [&]<PairType type>() {
      launch(stream, settle_kernel<type, kDim, what>,
             grid_of(ceil_div(view.features, kFeatures), view.heads, boundaries.count), kThreads,
             SettleMemory<type>::bytes(view.head_dim, scratch.most), view, boundaries.data,
             scratch);
    });
  });
}

}  // namespace

void settle_boundaries(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                       const RunScratch& scratch, Absorb what) {
  if (what == Absorb::kLostInPlace) {
    launch(stream, settle_kernel<PairType::kF16, 128, Absorb::kLostInPlace>,
           grid_of(ceil_div(view.features, kFeatures), view.heads, boundaries.count), kThreads,
           SettleMemory<PairType::kF16>::bytes(view.head_dim, scratch.most), view, boundaries.data,
           scratch);
    return;
  }
  if (what == Absorb::kLost) return settle<Absorb::kLost>(stream, view, boundaries, scratch);
  settle<Absorb::kImagined>(stream, view, boundaries, scratch);
}

}  // namespace lola

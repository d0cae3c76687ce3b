// Each owner ranks its eligible pairs by their scores; those it does not keep are absorbed.
#include <algorithm>

#include "backend/cuda/lola_boundary.cuh"
#include "backend/cuda/lola_choice.cuh"
#include "backend/cuda/row_tile.cuh"

namespace lola {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kFeatures = 32;  // of a block
constexpr int kPhiStride = kFeatures + 4;
constexpr int kPairs = 64;           // absorbed at a time
constexpr int kSharedChoice = 1024;  // eligible pairs; the choice among more is in device memory
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
// sparse cache is written by the block that `writes`.
template <PairType type>
__device__ inline int choose(const LolaView& view, const RunScratch& scratch,
                             const DeviceBoundary& boundary, int owner, bool writes,
                             const SettleMemory<type>& m) {
  __shared__ int warps[kWarps];
  const int count = boundary.cached + boundary.leaving;
  const int capacity = static_cast<int>(view.sparse_capacity);
  const bool compete = capacity > 0 && count > capacity;
  load_eligible(view, scratch, boundary, owner, compete, m);
  const int64_t next = cache_part(view, boundary.to, owner);
  int all_lost = 0;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const bool keeps =
        i < count && (compete ? rank_of<1>(m.keys, count, i) < capacity : capacity > 0);
    int total;
    const int lost = all_lost + count_before<kWarps>(i < count && !keeps, warps, total);
    all_lost += total;
    if (i >= count) continue;
    if (!keeps) m.lost[lost] = m.numbers[i];
    if (keeps && writes) {
      scratch.caches[next + i - lost] = m.numbers[i];
      scratch.scores[next + i - lost] = compete ? score_of_key(m.keys[i]) : 0.0f;
    }
  }
  __syncthreads();
  return all_lost;
}

// Eight neighbouring columns of a row.
struct EightColumns {
  float4 first, second;

  __device__ EightColumns() : first{}, second{} {}
  __device__ explicit EightColumns(const float* from)
      : first(four_at(from)), second(four_at(from + 4)) {}
  template <typename Value>
  __device__ explicit EightColumns(const Value& value)
      : first{value(0), value(1), value(2), value(3)},
        second{value(4), value(5), value(6), value(7)} {}
  __device__ void add(const EightColumns& other) {
    first.x += other.first.x, first.y += other.first.y, first.z += other.first.z;
    first.w += other.first.w;
    second.x += other.second.x, second.y += other.second.y, second.z += other.second.z;
    second.w += other.second.w;
  }
  __device__ void store(float* to) const {
    reinterpret_cast<float4*>(to)[0] = first;
    reinterpret_cast<float4*>(to)[1] = second;
  }
};

__device__ inline void add_to(float& a, float b) { a += b; }
__device__ inline void add_to(EightColumns& a, const EightColumns& b) { a.add(b); }
__device__ inline void store(float* to, float value) { *to = value; }
__device__ inline void store(float* to, const EightColumns& value) { value.store(to); }

// Where sum `at` of a hidden state is, or null.
__device__ inline float* moved(const float* sums, int64_t at) {
  return sums == nullptr ? nullptr : const_cast<float*>(sums) + at;
}

// to = from and what was absorbed. Where there are pending sums it waits in them, unless they are
// flushed; imagined states (no pending ones to write) hold all.
template <typename T>
__device__ inline void write_sums(T main, T pending, const T& absorbed, bool flush, float* to,
                                  float* to_pending) {
  add_to(pending, absorbed);
  const bool waits = to_pending != nullptr && !flush;
  if (!waits) add_to(main, pending);
  store(to, main);
  if (to_pending != nullptr) store(to_pending, waits ? pending : T{});
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
__global__ void __launch_bounds__(kThreads)
    settle_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                  const __grid_constant__ RunScratch scratch) {
  extern __shared__ __align__(16) float shared[];
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  wait_for_previous_kernel();
  constexpr bool kAll = what == Absorb::kImagined;
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
      kAll ? all : choose<type>(view, scratch, boundary, owner.index, speaks && blockIdx.x == 0, m);
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
  } else if (count == 0 && to.state == from.state) {
    return;
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
  if (threadIdx.x >= kFeatures || first + static_cast<int>(threadIdx.x) >= f) return;
  for (int w = 1; w < kWarps; ++w) sum += parts[w * 32 + threadIdx.x];
  write_sums(main_sum, pending_sum, sum, flush, moved(to.sum, own), moved(to.pending_sum, own));
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
  if (what == Absorb::kLost) return settle<Absorb::kLost>(stream, view, boundaries, scratch);
  settle<Absorb::kImagined>(stream, view, boundaries, scratch);
}

}  // namespace lola

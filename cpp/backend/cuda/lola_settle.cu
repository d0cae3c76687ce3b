// Each owner ranks its eligible pairs by their scores and rewrites its sparse cache; what it does
// not keep is absorbed.
#include <algorithm>

#include "backend/cuda/lola_eligible.cuh"

namespace lola {
namespace {

constexpr int kSelectThreads = 512;
constexpr int kMovesInFlight = 8;    // units of a row that a thread holds
constexpr int kSharedScores = 8192;  // more are read from device memory

// Copies the kept rows to the front of the cache, in order. A row only moves to a place at or
// before its own, so what a batch overwrites was read by it or by a batch before.
template <typename Unit>
__device__ void move_rows(const LolaView& view, const DeviceBoundary& boundary, const Owner& owner,
                          const int* source, int kept, int64_t in_window, int64_t in_cache) {
  const int units = static_cast<int>(view.row_bytes / static_cast<int64_t>(sizeof(Unit)));
  auto* to = reinterpret_cast<Unit*>(cache_row(view, boundary.memory, in_cache, owner.index, 0));
  // Rows of up to kSelectThreads units: several at a time, a thread per unit.
  const int rows = max(1, kSelectThreads / units), lanes = min(units, kSelectThreads);
  const int row = static_cast<int>(threadIdx.x) / lanes,
            lane = static_cast<int>(threadIdx.x) % lanes;
  const bool moves = row < rows;
  for (int begin = 0; begin < kept; begin += rows * kMovesInFlight) {
    for (int unit = lane; unit < units; unit += lanes) {
      Unit held[kMovesInFlight];
#pragma unroll
      for (int i = 0; i < kMovesInFlight; ++i) {
        const int place = begin + i * rows + row;
        if (!moves || place >= kept) continue;
        const uint8_t* from =
            eligible_row(view, boundary, owner, in_window, in_cache, source[place]);
        held[i] = reinterpret_cast<const Unit*>(from)[unit];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kMovesInFlight; ++i) {
        const int place = begin + i * rows + row;
        if (moves && place < kept) to[static_cast<int64_t>(place) * units + unit] = held[i];
      }
      __syncthreads();
    }
  }
}

// Inclusive sums over the block.
__device__ inline int block_scan(int value, int* warps) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(~0u, value, offset);
    if (lane >= offset) value += other;
  }
  if (lane == 31) warps[warp] = value;
  __syncthreads();
  for (int w = 0; w < warp; ++w) value += warps[w];
  __syncthreads();
  return value;
}

// Whether pair i is among the `capacity` largest scores; of equal ones the older ranks higher.
__device__ inline bool ranks_within(const float* scores, int count, int i, int64_t capacity) {
  const float own = scores[i];
  int above = 0;
#pragma unroll 8
  for (int j = 0; j < count; ++j) above += scores[j] > own || (scores[j] == own && j < i);
  return above < capacity;
}

// Lists the kept and the lost pairs, each in order; returns the number of the kept.
__device__ inline int list_pairs(const float* scores, int count, int64_t capacity, int* kept,
                                 int* lost) {
  __shared__ int warps[kSelectThreads / 32];
  __shared__ int batch_kept;
  int all_kept = 0;
  for (int begin = 0; begin < count; begin += kSelectThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const bool keeps = i < count && (count <= capacity || ranks_within(scores, count, i, capacity));
    const int through = block_scan(keeps, warps);
    if (threadIdx.x == kSelectThreads - 1) batch_kept = through;
    if (keeps) kept[all_kept + through - 1] = i;
    if (!keeps && i < count) lost[begin - all_kept + static_cast<int>(threadIdx.x) - through] = i;
    __syncthreads();
    all_kept += batch_kept;
    __syncthreads();
  }
  return all_kept;
}

// A block per owner.
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                  const __grid_constant__ BoundaryScratch scratch) {
  extern __shared__ float shared[];
  wait_for_previous_kernel();
  const DeviceBoundary boundary = boundaries[blockIdx.y];
  if (boundary.memory == nullptr) return;
  const Owner owner(view, blockIdx.x);
  const int count = boundary.cached + boundary.leaving;
  const int64_t own = part_of(view, scratch, blockIdx.y, view.owners(), owner.index);
  float* scores = count <= kSharedScores ? shared : scratch.scores + own;
  const int heads = view.head_scope ? 1 : view.group;
  const bool compete = view.sparse_capacity > 0 && count > view.sparse_capacity;
  for (int i = threadIdx.x; i < count; i += kSelectThreads) {
    float best = compete ? -INFINITY : 0.0f;
    for (int h = 0; h < heads && compete; ++h) {
      const int64_t part = part_of(view, scratch, blockIdx.y, view.heads, owner.index * heads + h);
      const float score = scratch.head_scores[part + i];
      if (score > best) best = score;  // never true of a NaN
    }
    scores[i] = best;
  }
  __syncthreads();
  int* kept = scratch.kept + own;
  const int places = list_pairs(scores, count, view.sparse_capacity, kept, scratch.lost + own);
  if (threadIdx.x == 0)
    scratch.lost_count[blockIdx.y * view.owners() + owner.index] = count - places;
  if (view.sparse_capacity == 0) return;
  const auto move = [&](int64_t in_window, int64_t in_cache) {
    if (view.row_bytes % 16 == 0) {
      move_rows<uint4>(view, boundary, owner, kept, places, in_window, in_cache);
    } else {
      move_rows<uint16_t>(view, boundary, owner, kept, places, in_window, in_cache);
    }
  };
  move(view.ring_k, view.cache_k);
  move(view.ring_v, view.cache_v);
  const int64_t first = owner.index * view.sparse_capacity;
  auto* positions = reinterpret_cast<int64_t*>(boundary.memory + view.cache_position) + first;
  float* cache_scores = floats_at(boundary.memory, view.cache_score, first);
  for (int begin = 0; begin < places; begin += kSelectThreads) {
    const int place = begin + static_cast<int>(threadIdx.x);
    const int pair = place < places ? kept[place] : 0;
    const int64_t position =
        pair < boundary.cached ? positions[pair] : boundary.first_leaving + pair - boundary.cached;
    __syncthreads();
    if (place < places) positions[place] = position, cache_scores[place] = scores[pair];
    __syncthreads();
  }
}

}  // namespace

int64_t boundary_scratch_bytes(const LolaView& view, int64_t most) {
  const int64_t heads = view.heads * most * (view.features + 1);
  const int64_t owners = view.owners() * (most * (view.head_dim + 3) + 1);
  return 4 * (heads + owners + view.heads * imagined_size(view));
}

BoundaryScratch boundary_scratch(const LolaView& view, int64_t most, int64_t boundaries,
                                 uint8_t* memory) {
  auto* next = reinterpret_cast<float*>(memory);
  const auto take = [&](int64_t count) {
    float* taken = next;
    next += count * boundaries;
    return taken;
  };
  BoundaryScratch scratch{};
  scratch.values = take(view.owners() * most * view.head_dim);
  scratch.imagined = take(view.heads * imagined_size(view));
  scratch.features = take(view.heads * most * view.features);
  scratch.head_scores = take(view.heads * most);
  scratch.scores = take(view.owners() * most);
  scratch.kept = reinterpret_cast<int*>(take(view.owners() * most));
  scratch.lost = reinterpret_cast<int*>(take(view.owners() * most));
  scratch.lost_count = reinterpret_cast<int*>(take(view.owners()));
  scratch.most = most;
  return scratch;
}

void settle_boundaries(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                       const BoundaryScratch& scratch) {
  launch(stream, select_kernel, grid_of(view.owners(), boundaries.count), kSelectThreads,
         std::min<int64_t>(scratch.most, kSharedScores) * 4, view, boundaries.data, scratch);
  absorb_pairs(stream, view, boundaries, scratch, Absorb::kLost);
}

}  // namespace lola

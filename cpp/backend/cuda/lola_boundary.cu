// A chunk boundary: every eligible pair is mapped and scored by blocks of 16, each owner ranks its
// pairs and rewrites its sparse cache, and the hidden states gain the others.
#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "backend/cuda/lola_view.cuh"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

constexpr int kSelectThreads = 512;
constexpr int kMovesInFlight = 8;    // units of a row that a thread holds
constexpr int kSharedScores = 8192;  // more are read from device memory
constexpr int kAbsorbFeatures = 32;  // of a block
constexpr int kAbsorbPairs = 32;     // in shared memory at a time

// Vectors of the tiles that features are mapped with.
__host__ __device__ inline int map_vectors(const LolaView& view) {
  const int size = static_cast<int>(view.map.map_size);
  return size < kTileVectors ? (size + 31) / 32 * 32 : kTileVectors;  // whole warps
}

enum class Stage { kFeatures, kScores };

// One owner's, or one head's, part of the scratch of boundary `boundary`.
__device__ inline int64_t part_of(const LolaView& view, const BoundaryScratch& scratch,
                                  int boundary, int parts, int part) {
  return (static_cast<int64_t>(boundary) * parts + part) * scratch.most;
}

// Who owns a sparse cache, and whose window its pairs come from.
struct Owner {
  int index;
  int kv_head;

  __device__ Owner(const LolaView& view, int owner)
      : index(owner), kv_head(view.head_scope ? owner / view.group : owner) {}
};

// Without a branch, so that the loads of several rows can be on their way together.
__device__ inline const uint8_t* eligible_row(const LolaView& view, const DeviceBoundary& boundary,
                                              const Owner& owner, int64_t in_window, int64_t in_cache, int i) {
  const bool cached = i < boundary.cached;
  const int64_t slot = cached ? i : ring_slot(view, boundary.first_slot, i - boundary.cached);
  const int64_t part = cached ? owner.index : owner.kv_head;
  const int64_t capacity = cached ? view.sparse_capacity : view.ring_capacity;
  return boundary.memory + (cached ? in_cache : in_window) + (part * capacity + slot) * view.row_bytes;
}

// Floats of an imagined hidden state, a multiple of four.
__host__ __device__ inline int64_t imagined_size(const LolaView& view) {
  return static_cast<int64_t>(view.features) * view.head_dim + (view.features + 3) / 4 * 4;
}

// The imagined hidden state of a head, with all eligible pairs absorbed: Hs, then s.
__device__ inline float* imagined_state(const LolaView& view, const BoundaryScratch& scratch,
                                        int boundary, int head) {
  const int64_t size = imagined_size(view);
  return scratch.imagined + (static_cast<int64_t>(boundary) * view.heads + head) * size;
}

// SRE of a lane's rows: the squares summed over all columns.
template <PairType type>
__device__ inline void recall_errors(const TileMemory& m, const LanePart& part, const LolaView& view,
                                     const DeviceBoundary& boundary, const Owner& owner, int first,
                                     int count, const HiddenRows* hidden, float errors[4]) {
  RowSums y;
  float sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  if (hidden != nullptr) read_hidden(m, part, *hidden, view.features, view.head_dim, y, sum);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    errors[i] = 0.0f;
    const int pair = first + part.rows + i;
    if (pair >= count) continue;
    const uint8_t* row =
        eligible_row(view, boundary, owner, view.ring_v, view.cache_v, pair);
#pragma unroll
    for (int block = 0; block < kColumnBlocks; ++block) {
      const int column = part.columns + block * kTileVectors;
      if (column >= view.head_dim) continue;
      const float4 x = load_four<type>(row, column);
      const float v[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float difference = y.value[block][i][j] / sum[i] - v[j];
        errors[i] += difference * difference;
      }
    }
  }
  over_block(errors, part, m.lines, [](float a, float b) { return a + b; });
}

// m.rows = the stored rows row(r), of the first `count`; zero for the others. A warp has four.
template <PairType type, typename Row>
__device__ inline void load_pairs(const TileMemory& m, int d, int count, const Row& row) {
  constexpr int kRows = kTileRows * 32 / kTileThreads;
  const int first = threadIdx.x / 32 * kRows;
  for (int c = threadIdx.x % 32 * 4; c < d; c += 128) {
    float4 x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = load_four<type>(row(min(first + r, count - 1)), c);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      *reinterpret_cast<float4*>(m.rows + (first + r) * m.stride + c) = first + r < count ? x[r] : float4{};
    }
  }
}

// to [count, d] = the stored rows row(r), as floats.
template <PairType type, typename Row>
__device__ inline void copy_values(int d, int count, float* to, const Row& row) {
  for (int r = threadIdx.x / 32; r < count; r += kTileThreads / 32) {
    for (int c = threadIdx.x % 32 * 4; c < d; c += 128) {
      *reinterpret_cast<float4*>(to + static_cast<int64_t>(r) * d + c) = load_four<type>(row(r), c);
    }
  }
}

// A block per 16 eligible pairs of one head: their features, and where pairs compete their scores.
template <PairType type, size_t policy>
__global__ void __launch_bounds__(kTileThreads)
    score_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                 const __grid_constant__ BoundaryScratch scratch, Stage stage) {
  extern __shared__ float shared[];
  wait_for_previous_kernel();
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  const int first = blockIdx.x * kTileRows, head = blockIdx.y;
  const Owner owner(view, view.owner_of(head));
  const int count = boundary.cached + boundary.leaving, d = view.head_dim;
  if (boundary.memory == nullptr || first >= count) return;
  const TileMemory m(shared, d, map_vectors(view), view.features);
  const LanePart part;
  const int64_t own = part_of(view, scratch, blockIdx.z, view.owners(), owner.index);
  const bool speaks = view.head_scope || head % view.group == 0;  // for its owner
  load_pairs<type>(m, d, min(kTileRows, count - first), [&](int r) {
    return eligible_row(view, boundary, owner, view.ring_k, view.cache_k, first + r);
  });
  if (speaks) {
    copy_values<type>(d, min(kTileRows, count - first), scratch.values + (own + first) * d, [&](int r) {
      return eligible_row(view, boundary, owner, view.ring_v, view.cache_v, first + r);
    });
  }
  map_rows(m, part, view.map, view.key_map + static_cast<int64_t>(head) * view.map.map_size * d, d);
  const int64_t heads_part = part_of(view, scratch, blockIdx.z, view.heads, head);
  const int row = threadIdx.x / 8;  // 8 lanes write its features
  float* features = scratch.features + (heads_part + first + row) * view.features;
  for (int j = threadIdx.x % 8; j < view.features && first + row < count; j += 8) {
    features[j] = m.weights[j * kWeightStride + row];
  }
  if (stage == Stage::kFeatures || view.sparse_capacity == 0 || count <= view.sparse_capacity)
    return;

  constexpr CachePolicy kPolicy = kCachePolicies[policy];
  float errors[4] = {}, norms[4] = {};
  if constexpr (kPolicy.recall_from != RecallFrom::kNothing) {
    HiddenRows hidden = hidden_rows(view, boundary.memory, head);
    if constexpr (kPolicy.recall_from == RecallFrom::kStateAfter) {
      const float* state = imagined_state(view, scratch, blockIdx.z, head);
      hidden = {state, state + static_cast<int64_t>(view.features) * d, nullptr, nullptr};
    }
    const bool empty = kPolicy.recall_from == RecallFrom::kStateBefore && boundary.absorbed == 0;
    recall_errors<type>(m, part, view, boundary, owner, first, count, empty ? nullptr : &hidden,
                        errors);
  }
  for (int i = 0; i < 4; ++i) {
    for (int c = part.columns; c < d; c += kTileVectors) {
      const float4 k = *reinterpret_cast<const float4*>(m.rows + (part.rows + i) * m.stride + c);
      norms[i] += dot4(k, k);
    }
  }
  over_block(norms, part, m.lines, [](float a, float b) { return a + b; });
  if (threadIdx.x >= 32 || threadIdx.x % 8 != 0) return;
  for (int i = 0; i < 4; ++i) {
    const int pair = first + part.rows + i;
    if (pair >= count) continue;
    const int64_t position =
        pair < boundary.cached
            ? reinterpret_cast<const int64_t*>(
                  boundary.memory + view.cache_position)[owner.index * view.sparse_capacity + pair]
            : boundary.first_leaving + pair - boundary.cached;
    const PairFacts facts{.recall_error = errors[i],
                          .key_norm2 = norms[i],
                          .kappa = view.kappa[head],
                          .head_dim = d,
                          .position = position,
                          .age = boundary.seen - position,
                          .head = head,
                          .seed = view.seed};
    if constexpr (kPolicy.score != nullptr) {
      scratch.head_scores[heads_part + pair] = kPolicy.score(facts);
    }
  }
}

// Copies the kept rows to the front of the cache, in order. A row only moves to a place at or
// before its own, so what a batch overwrites was read by it or by a batch before.
template <typename Unit>
__device__ void move_rows(const LolaView& view, const DeviceBoundary& boundary, const Owner& owner,
                          const int* source, int kept, int64_t in_window, int64_t in_cache) {
  const int units = static_cast<int>(view.row_bytes / static_cast<int64_t>(sizeof(Unit)));
  auto* to = reinterpret_cast<Unit*>(cache_row(view, boundary.memory, in_cache, owner.index, 0));
  // Rows of up to kSelectThreads units: several at a time, a thread per unit.
  const int rows = max(1, kSelectThreads / units), lanes = min(units, kSelectThreads);
  const int row = static_cast<int>(threadIdx.x) / lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const bool moves = row < rows;
  for (int begin = 0; begin < kept; begin += rows * kMovesInFlight) {
    for (int unit = lane; unit < units; unit += lanes) {
      Unit held[kMovesInFlight];
#pragma unroll
      for (int i = 0; i < kMovesInFlight; ++i) {
        const int place = begin + i * rows + row;
        if (!moves || place >= kept) continue;
        const uint8_t* from = eligible_row(view, boundary, owner, in_window, in_cache, source[place]);
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
  if (threadIdx.x == 0) scratch.lost_count[blockIdx.y * view.owners() + owner.index] = count - places;
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

// Sums of a block over absorbed pairs: 8 features by 4 columns of every 128 a thread.
struct AbsorbSums {
  float state[kColumnBlocks][8][4];
  float sum;  // of feature threadIdx.x % kAbsorbFeatures
};

// Where a block's absorbed sums go.
enum class Absorb { kLost, kImagined };

__device__ inline void add_absorbed(const LolaView& view, const HiddenRows& hidden, int64_t at,
                                    float value, bool flush, float* imagined) {
  auto* state = const_cast<float*>(hidden.state);
  auto* pending = const_cast<float*>(hidden.pending_state);
  if (imagined != nullptr) {
    imagined[at] = value + state[at] + (pending != nullptr ? pending[at] : 0.0f);
  } else if (pending == nullptr) {
    state[at] += value;
  } else if (!flush) {
    pending[at] += value;
  } else {
    state[at] += pending[at] + value;
    pending[at] = 0.0f;
  }
}

// Columns [first, first + count) of the listed rows of `from` [rows, width] go to shared memory; those
// past the width are zero. A warp takes every fourth row, eight loads at a time.
__device__ inline void stage_pairs(const float* from, int width, int first, int count,
                                   const int* list, int pairs, float* to, int stride) {
  constexpr int kAtOnce = kAbsorbPairs * 32 / kTileThreads;
  const int warp = threadIdx.x / 32;
  for (int c = threadIdx.x % 32; c < count; c += 32) {
    float x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t row = list[min(warp + i * kTileThreads / 32, pairs - 1)];
      x[i] = first + c < width ? from[row * width + first + c] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) to[(warp + i * kTileThreads / 32) * stride + c] = x[i];
  }
}

// A block per kAbsorbFeatures features of a head. The pairs of a boundary are summed first and
// added once.
__global__ void __launch_bounds__(kTileThreads)
    absorb_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                  const __grid_constant__ BoundaryScratch scratch, Absorb what) {
  __shared__ float phi[kAbsorbPairs][kAbsorbFeatures];
  __shared__ float v[kAbsorbPairs][kMaxHeadDim];
  __shared__ int list[kAbsorbPairs];
  wait_for_previous_kernel();
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  if (boundary.memory == nullptr) return;
  const int head = blockIdx.y, owner = view.owner_of(head), d = view.head_dim, f = view.features;
  const int64_t own = part_of(view, scratch, blockIdx.z, view.owners(), owner);
  const int64_t heads_part = part_of(view, scratch, blockIdx.z, view.heads, head);
  const bool all = what == Absorb::kImagined;
  const int count = all ? boundary.cached + boundary.leaving
                        : scratch.lost_count[blockIdx.z * view.owners() + owner];
  if (count == 0) return;
  const int first = blockIdx.x * kAbsorbFeatures, group = threadIdx.x / 32 * 8,
            column = threadIdx.x % 32 * 4;
  AbsorbSums sums{};
  for (int begin = 0; begin < count; begin += kAbsorbPairs) {
    const int pairs = min(kAbsorbPairs, count - begin);
    __syncthreads();
    if (threadIdx.x < pairs) {
      list[threadIdx.x] = all ? begin + threadIdx.x : scratch.lost[own + begin + threadIdx.x];
    }
    __syncthreads();
    stage_pairs(scratch.features + heads_part * f, f, first, kAbsorbFeatures, list, pairs, &phi[0][0],
                kAbsorbFeatures);
    stage_pairs(scratch.values + own * d, d, 0, d, list, pairs, &v[0][0], kMaxHeadDim);
    __syncthreads();
    for (int p = 0; p < pairs; ++p) {
      if (threadIdx.x < kAbsorbFeatures) sums.sum += phi[p][threadIdx.x];
#pragma unroll
      for (int block = 0; block < kColumnBlocks; ++block) {
        if (column + block * kTileVectors >= d) continue;
        const float4 x = *reinterpret_cast<const float4*>(&v[p][column + block * kTileVectors]);
        const float value[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 32; ++i)
          sums.state[block][i / 4][i % 4] += phi[p][group + i / 4] * value[i % 4];
      }
    }
  }
  const HiddenRows hidden = hidden_rows(view, boundary.memory, head);
  const bool flush = (boundary.absorbed + count) / kFlushPairs > boundary.absorbed / kFlushPairs;
  float* imagined = all ? imagined_state(view, scratch, blockIdx.z, head) : nullptr;
#pragma unroll
  for (int i = 0; i < kColumnBlocks * 32; ++i) {
    const int j = first + group + i / 4 % 8, c = column + i / 32 * kTileVectors + i % 4;
    if (j >= f || c >= d) continue;
    add_absorbed(view, hidden, static_cast<int64_t>(j) * d + c,
                 sums.state[i / 32][i / 4 % 8][i % 4], flush, imagined);
  }
  if (threadIdx.x >= kAbsorbFeatures || first + static_cast<int>(threadIdx.x) >= f) return;
  const HiddenRows only_sum{hidden.sum, nullptr, hidden.pending_sum, nullptr};
  add_absorbed(view, only_sum, first + static_cast<int>(threadIdx.x), sums.sum, flush,
               all ? imagined + static_cast<int64_t>(f) * d : nullptr);
}

void launch_absorb(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                   const BoundaryScratch& scratch, Absorb what) {
  launch(stream, absorb_kernel,
         grid_of(ceil_div(view.features, kAbsorbFeatures), view.heads, boundaries.count),
         kTileThreads, 0, view, boundaries.data, scratch, what);
}

using ScoreKernel = void (*)(LolaView, const DeviceBoundary*, BoundaryScratch, Stage);

template <PairType type, size_t... policies>
ScoreKernel score_kernel_of(size_t policy, std::index_sequence<policies...>) {
  constexpr ScoreKernel kKernels[] = {score_kernel<type, policies>...};
  return kKernels[policy];
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

void score_boundaries(const Stream& stream, const LolaView& view, const CachePolicy& policy,
                      const BoundarySpan& boundaries, const BoundaryScratch& scratch) {
  constexpr size_t kPolicies = std::size(kCachePolicies);
  size_t index = 0;
  while (index + 1 < kPolicies && std::string_view(kCachePolicies[index].name) != policy.name) ++index;
  ScoreKernel kernel = nullptr;
  with_pair_type(view.type, [&]<PairType type>() {
    kernel = score_kernel_of<type>(index, std::make_index_sequence<kPolicies>());
  });
  const auto score = [&](Stage stage) {
    launch(stream, kernel, grid_of(ceil_div(scratch.most, kTileRows), view.heads, boundaries.count),
           kTileThreads, tile_memory_bytes(view.head_dim, map_vectors(view), view.features), view,
           boundaries.data, scratch, stage);
  };
  if (policy.recall_from == RecallFrom::kStateAfter) {
    score(Stage::kFeatures);
    launch_absorb(stream, view, boundaries, scratch, Absorb::kImagined);
  }
  score(Stage::kScores);
}

void settle_boundaries(const Stream& stream, const LolaView& view, const BoundarySpan& boundaries,
                       const BoundaryScratch& scratch) {
  launch(stream, select_kernel, grid_of(view.owners(), boundaries.count), kSelectThreads,
         std::min<int64_t>(scratch.most, kSharedScores) * 4, view, boundaries.data, scratch);
  launch_absorb(stream, view, boundaries, scratch, Absorb::kLost);
}

}  // namespace lola

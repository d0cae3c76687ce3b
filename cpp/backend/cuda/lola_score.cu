// Every eligible pair is mapped, and scored where pairs compete.
#include <iterator>
#include <string_view>
#include <utility>

#include "backend/cuda/lola_eligible.cuh"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

enum class Stage { kFeatures, kScores };

// SRE of a lane's rows: the squares summed over all columns.
template <PairType type>
__device__ inline void recall_errors(const TileMemory& m, const LanePart& part,
                                     const LolaView& view, const DeviceBoundary& boundary,
                                     const Owner& owner, int first, int count,
                                     const HiddenRows* hidden, float errors[2]) {
  RowSums y;
  float sum[2] = {1.0f, 1.0f};
  if (hidden != nullptr) read_hidden(m, part, *hidden, view.features, view.head_dim, y, sum);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    errors[i] = 0.0f;
    const int pair = first + part.row + 8 * i;
    if (pair >= count) continue;
    const uint8_t* row = eligible_row(view, boundary, owner, view.ring_v, view.cache_v, pair);
#pragma unroll
    for (int block = 0; block < kColumnBlocks; ++block) {
      const int column = part.columns + block * kTileVectors;
      if (column >= view.head_dim) continue;
      const Eight v = load_eight<type>(row, column);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float difference = y.value[block][i][j] / sum[i] - v.v[j];
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
  for (int c = threadIdx.x % 32 * 4; c < tile_columns(d); c += 128) {
    float4 x[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (c < d) x[r] = load_four<type>(row(min(first + r, count - 1)), c);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      *reinterpret_cast<float4*>(m.rows + (first + r) * m.stride + c) =
          first + r < count ? x[r] : float4{};
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
  const TileMemory m(shared, d, view.features);
  const LanePart part;
  const int64_t own = part_of(view, scratch, blockIdx.z, view.owners(), owner.index);
  const bool speaks = view.head_scope || head % view.group == 0;  // for its owner
  load_pairs<type>(m, d, min(kTileRows, count - first), [&](int r) {
    return eligible_row(view, boundary, owner, view.ring_k, view.cache_k, first + r);
  });
  if (speaks) {
    copy_values<type>(
        d, min(kTileRows, count - first), scratch.values + (own + first) * d, [&](int r) {
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
  float errors[2] = {}, norms[2] = {};
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
  for (int i = 0; i < 2; ++i) {
    for (int c = part.columns; c < d; c += kTileVectors) {
      const float* key = m.rows + (part.row + 8 * i) * m.stride + c;
      for (int j = 0; j < 8; ++j) norms[i] += key[j] * key[j];
    }
  }
  over_block(norms, part, m.lines, [](float a, float b) { return a + b; });
  if (threadIdx.x >= 32 || part.quarter != 0) return;
  for (int i = 0; i < 2; ++i) {
    const int pair = first + part.row + 8 * i;
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

using ScoreKernel = void (*)(LolaView, const DeviceBoundary*, BoundaryScratch, Stage);

template <PairType type, size_t... policies>
ScoreKernel score_kernel_of(size_t policy, std::index_sequence<policies...>) {
  constexpr ScoreKernel kKernels[] = {score_kernel<type, policies>...};
  return kKernels[policy];
}

}  // namespace

void score_boundaries(const Stream& stream, const LolaView& view, const CachePolicy& policy,
                      const BoundarySpan& boundaries, const BoundaryScratch& scratch) {
  constexpr size_t kPolicies = std::size(kCachePolicies);
  size_t index = 0;
  while (index + 1 < kPolicies && std::string_view(kCachePolicies[index].name) != policy.name)
    ++index;
  ScoreKernel kernel = nullptr;
  with_pair_type(view.type, [&]<PairType type>() {
    kernel = score_kernel_of<type>(index, std::make_index_sequence<kPolicies>());
  });
  const auto score = [&](Stage stage) {
    launch(stream, kernel, grid_of(ceil_div(scratch.most, kTileRows), view.heads, boundaries.count),
           kTileThreads, tile_memory_bytes(view.head_dim, view.features), view, boundaries.data,
           scratch, stage);
  };
  if (policy.recall_from == RecallFrom::kStateAfter) {
    score(Stage::kFeatures);
    absorb_pairs(stream, view, boundaries, scratch, Absorb::kImagined);
  }
  score(Stage::kScores);
}

}  // namespace lola

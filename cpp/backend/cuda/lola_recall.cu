// The eligible pairs of boundaries that change sessions in place: mapped and scored in one kernel,
// on GPUs of compute capability 9.0.
#include "backend/cuda/lola_choice.cuh"
#include "backend/cuda/matmul.cuh"
#include "backend/cuda/recall_block.cuh"

namespace lola {
namespace {

using namespace recall;

// A block per kRows eligible pairs of one head.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    recall_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries,
                  const __grid_constant__ RunScratch scratch, int policy) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) float shared[];
  const DeviceBoundary boundary = boundaries[blockIdx.z];
  const int head = blockIdx.y, d = view.head_dim, f = static_cast<int>(view.map.map_size);
  const float* w = view.key_map + static_cast<int64_t>(head) * f * d;
  wait_for_previous_kernel();
  const int first = blockIdx.x * kRows, all = boundary.cached + boundary.leaving;
  if (boundary.memory == nullptr || first >= all || all <= view.sparse_capacity) return;
  const RecallPairs pairs{
      view, scratch, boundary, Owner(view, view.owner_of(head)), first, min(kRows, all - first)};
  const RecallMemory m(shared);
  find_rows(pairs, m);
  __syncthreads();
  stage_rows<PairType::kF16, kThreads, kRows, kMostFeatures>(
      m.v, kValueStride, d, d, pairs.count, [&](int r) { return m.rows[kRows + r]; });
  end_copies();
  const bool empty = boundary.absorbed == 0;
  const HiddenRows hidden = hidden_of(view, boundary.memory, scratch, boundary.from, head);
  const int own = threadIdx.x;
  if (own < kMostFeatures) m.sum[own] = own < view.features ? hidden.sum[own] : 0.0f;
  MapRows rows(w, 0, f, d);
  load_keys<kDim>(pairs, m);
  show_to_products();
  __syncthreads();
#pragma unroll 1
  for (int tile = 0; tile < f; tile += kTile) {
    if (tile > 0) rows = MapRows(w, tile, f, d);
    map_tile<kDim>(pairs, m, rows, tile);
  }
  const ScorePart<kDim> part;
  StateColumns state(hidden.state, part.column, view.features, d);
  __syncthreads();
  find_features(pairs, m);
  wait_for_copies<0>();
  show_to_products();
  __syncthreads();
  float y[part.kPairs / 2] = {};
  if (!empty) read_state(m, part, state, y);
  store_features(pairs, m, head);
  wgmma_wait<0>();
  find_errors(m, part, d, empty, y);
  __syncthreads();
  if (own >= pairs.count) return;
  PairFacts facts = facts_of(view, boundary, head, m.numbers[own], m.norms[own]);
  constexpr int kParts = kWarps * part.kPairs / kRows;
#pragma unroll
  for (int n = 0; n < kParts; ++n) {
    const int warp = kParts == kWarps ? n : own / kGroupRows * kParts + n;
    facts.recall_error += m.errors[warp * kRows + own];
  }
  scratch.head_scores[(static_cast<int64_t>(blockIdx.z) * view.heads + head) * scratch.most +
                      first + own] = score_of(policy, facts);
#endif
}

}  // namespace

bool pass_in_place(const CudaDevice& device, const Stream& stream, const LolaView& view,
                   const CachePolicy& policy, const BoundarySpan& boundaries,
                   const RunScratch& scratch) {
  if (!kHasWide || !device.has_wgmma() || policy.recall_from != RecallFrom::kStateBefore ||
      view.sparse_capacity == 0 || view.type != PairType::kF16 || view.pending_state >= 0 ||
      view.head_dim > 128 || view.features > kMostFeatures || scratch.most > kSharedChoice) {
    return false;
  }
  const auto kernel = view.head_dim <= kTile ? recall_kernel<kTile> : recall_kernel<128>;
  launch(stream, kernel, grid_of(ceil_div(scratch.most, kRows), view.heads, boundaries.count),
         kThreads, RecallMemory::kBytes, view, boundaries.data, scratch, index_of(policy));
  settle_boundaries(stream, view, boundaries, scratch, Absorb::kLostInPlace);
  return true;
}

}  // namespace lola

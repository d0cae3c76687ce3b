// All boundaries of one session in one kernel, where a multiprocessor has room for what competes.
//
// A block has kColumns columns of one head's Hs and of the values, and with them s and the features
// of every pair that competes now or next. So it absorbs without the others; of them it needs the
// parts of the recall errors that lie in their columns. These are posted in words that bring the
// number of their boundary along: whoever reads one sees whether it is there, with no barrier.
#include <utility>

#include "backend/cuda/chain_block.cuh"

namespace lola {
namespace {

using namespace chain;

// Blocks of all columns of all heads, which run at the same time.
template <PairType type>
__global__ void __launch_bounds__(kThreads, 1)
    chain_kernel(const __grid_constant__ LolaView view, const DeviceBoundary* boundaries, int count,
                 const __grid_constant__ RunScratch scratch, int policy) {
  extern __shared__ __align__(16) float shared[];
  wait_for_previous_kernel();
  const Block<type> block(shared, view, scratch);
  const auto& m = block.m;
  DeviceBoundary boundary = boundaries[0], next = boundaries[1];
  for (int i = threadIdx.x; i < m.slots; i += kThreads) m.ring[i] = i;
  __syncthreads();
  OwnState state =
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
    if (block.has_state()) {
      if (lost > 0) {
        block.absorb(lost, state);
        block.show_state(state);
      }
      block.store_state(state, hidden_of(view, boundary.memory, scratch, boundary.to, block.head));
    }
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
      view.sparse_capacity == 0 || view.pending_state >= 0 || view.head_dim % kColumns != 0 ||
      view.features > kMostFeatures) {
    return false;
  }
  bool passed = false;
  with_pair_type(view.type, [&]<PairType type>() {
    const int64_t bytes = Memory<type>::bytes(view, scratch.most);
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

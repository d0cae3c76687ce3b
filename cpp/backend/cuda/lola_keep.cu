// What a run leaves in the memories of its sessions, and the scratch memory that it works in.
#include <algorithm>

#include "backend/cuda/lola_boundary.cuh"
#include "backend/cuda/lola_keep.cuh"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

constexpr int kThreads = 512;

__device__ inline void keep_cache(const LolaView& view, const RunScratch& scratch,
                                  const DeviceChain& chain, const Owner& owner) {
  const int64_t part = cache_part(view, chain.last, owner.index);
  const int* numbers = scratch.caches + part;
#pragma unroll 1
  for (int value = 0; value < 2; ++value) {
    move_rows<kThreads>(view, scratch, chain.memory, chain.numbers, owner, numbers, chain.cached,
                        value == 1);
  }
  const int64_t first = owner.index * view.sparse_capacity;
  auto* positions = reinterpret_cast<int64_t*>(chain.memory + view.cache_position) + first;
  float* scores = floats_at(chain.memory, view.cache_score, first);
#pragma unroll 1
  for (int begin = 0; begin < chain.cached; begin += kThreads) {
    const int place = begin + static_cast<int>(threadIdx.x);
    const bool kept = place < chain.cached;
    const int64_t position =
        kept ? position_of(view, chain.memory, chain.numbers, owner.index, numbers[place]) : 0;
    __syncthreads();
    if (kept) positions[place] = position, scores[place] = scratch.scores[part + place];
    __syncthreads();
  }
}

__device__ inline void copy_hidden(const LolaView& view, const float* from, const float* to,
                                   const float* from_sum, const float* to_sum) {
  const int64_t size = static_cast<int64_t>(view.features) * view.head_dim;
  for (int64_t i = threadIdx.x * 4; i < size; i += kThreads * 4) {
    *reinterpret_cast<float4*>(const_cast<float*>(to) + i) =
        *reinterpret_cast<const float4*>(from + i);
  }
  for (int j = threadIdx.x; j < view.features; j += kThreads) {
    const_cast<float*>(to_sum)[j] = from_sum[j];
  }
}

// A block per owner, then one per head.
__global__ void __launch_bounds__(kThreads)
    keep_kernel(const __grid_constant__ LolaView view, const DeviceChain* chains,
                const __grid_constant__ RunScratch scratch) {
  const DeviceChain chain = chains[blockIdx.y];
  wait_for_previous_kernel();
  if (chain.memory == nullptr) return;
  if (blockIdx.x < view.owners()) {
    if (view.sparse_capacity > 0) keep_cache(view, scratch, chain, Owner(view, blockIdx.x));
    return;
  }
  if (chain.last.state == kOwn) return;
  const int head = blockIdx.x - view.owners();
  const HiddenRows to = hidden_rows(view, chain.memory, head);
  const HiddenRows from = hidden_at(view, scratch.states, chain.last.state, head);
  copy_hidden(view, from.state, to.state, from.sum, to.sum);
  if (to.pending_state == nullptr) return;
  copy_hidden(view, from.pending_state, to.pending_state, from.pending_sum, to.pending_sum);
}

}  // namespace

RunSizes run_sizes(const LolaView& view, const PlanRun& run, const LolaConfig& config,
                   int64_t tokens) {
  int64_t boundaries = 0;
  for (const PlanRun::Round& round : run.rounds)
    boundaries = std::max(boundaries, round.boundaries);
  return {.tokens = tokens,
          .rows = run.feature_rows,
          .most = view.sparse_capacity + config.chunk_size,
          .boundaries = boundaries,
          .versions = run.versions,
          .states = run.attends_own ? 0 : run.versions,
          .imagined = config.policy->recall_from == RecallFrom::kStateAfter ? boundaries : 0};
}

int64_t run_scratch(const LolaView& view, const RunSizes& sizes, uint8_t* memory,
                    RunScratch& scratch) {
  int64_t bytes = 0;
  const auto take = [&]<typename T>(T*& part, int64_t count) {
    part = reinterpret_cast<T*>(memory + bytes);
    bytes += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
  };
  const int64_t stride = feature_stride(view.features), heads = view.heads;
  const int64_t owners = view.owners();
  take(scratch.pass_k, view.kv_heads * sizes.tokens * view.row_bytes);
  take(scratch.pass_v, view.kv_heads * sizes.tokens * view.row_bytes);
  take(scratch.query_features, heads * sizes.tokens * stride);
  take(scratch.key_features, heads * sizes.rows * stride);
  take(scratch.key_norms, heads * sizes.rows);
  take(scratch.head_scores, sizes.boundaries * heads * sizes.most);
  take(scratch.choice, sizes.boundaries * owners * kChoice * padded_choice(sizes.most));
  take(scratch.words, chain_words(view, sizes.most));
  take(scratch.imagined, sizes.imagined * heads * state_floats(view));
  take(scratch.caches, sizes.versions * owners * view.sparse_capacity);
  take(scratch.scores, sizes.versions * owners * view.sparse_capacity);
  take(scratch.states, sizes.states * heads * state_floats(view));
  scratch.tokens = sizes.tokens, scratch.rows = sizes.rows, scratch.most = sizes.most;
  return bytes;
}

PairRing pass_pairs(const LolaView& view, const RunScratch& scratch) {
  PairRing pairs = view;
  pairs.ring_k = 0;
  pairs.ring_v = scratch.pass_v - scratch.pass_k;
  pairs.ring_capacity = scratch.tokens;
  return pairs;
}

void keep_versions(const Stream& stream, const LolaView& view, const ChainSpan& chains,
                   const RunScratch& scratch) {
  launch(stream, keep_kernel, grid_of(view.owners() + view.heads, chains.count), kThreads, 0, view,
         chains.data, scratch);
}

}  // namespace lola

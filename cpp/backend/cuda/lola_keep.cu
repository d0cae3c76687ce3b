// What a run leaves in the memories of its sessions, and the scratch memory that it works in.
#include <algorithm>

#include "backend/cuda/lola_boundary.cuh"
#include "memory/policies/policy_table.h"

namespace lola {
namespace {

constexpr int kThreads = 512;
constexpr int kMovesInFlight = 8;  // units of a row that a thread holds

// Copies the numbered rows to the front of the cache, in order. A row only moves to a place at or
// before its own, so what a batch overwrites was read by it or by a batch before.
template <typename Unit>
__device__ void move_rows(const LolaView& view, const RunScratch& scratch, const DeviceChain& chain,
                          const Owner& owner, const int* numbers, bool value) {
  const int units = static_cast<int>(view.row_bytes / static_cast<int64_t>(sizeof(Unit)));
  auto* to = reinterpret_cast<Unit*>(
      cache_row(view, chain.memory, value ? view.cache_v : view.cache_k, owner.index, 0));
  // Rows of up to kThreads units: several at a time, a thread per unit.
  const int rows = max(1, kThreads / units), lanes = min(units, kThreads);
  const int row = static_cast<int>(threadIdx.x) / lanes,
            lane = static_cast<int>(threadIdx.x) % lanes;
  const bool moves = row < rows;
#pragma unroll 1
  for (int begin = 0; begin < chain.cached; begin += rows * kMovesInFlight) {
#pragma unroll 1
    for (int unit = lane; unit < units; unit += lanes) {
      Unit held[kMovesInFlight];
#pragma unroll
      for (int i = 0; i < kMovesInFlight; ++i) {
        const int place = begin + i * rows + row;
        if (!moves || place >= chain.cached) continue;
        const uint8_t* from =
            numbered_row(view, scratch, chain.memory, chain.numbers, owner, numbers[place], value);
        held[i] = reinterpret_cast<const Unit*>(from)[unit];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kMovesInFlight; ++i) {
        const int place = begin + i * rows + row;
        if (moves && place < chain.cached) to[static_cast<int64_t>(place) * units + unit] = held[i];
      }
      __syncthreads();
    }
  }
}

__device__ inline void keep_cache(const LolaView& view, const RunScratch& scratch,
                                  const DeviceChain& chain, const Owner& owner) {
  const int64_t part = cache_part(view, chain.last, owner.index);
  const int* numbers = scratch.caches + part;
#pragma unroll 1
  for (int value = 0; value < 2; ++value) {
    if (view.row_bytes % 16 == 0) {
      move_rows<uint4>(view, scratch, chain, owner, numbers, value == 1);
    } else {
      move_rows<uint16_t>(view, scratch, chain, owner, numbers, value == 1);
    }
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

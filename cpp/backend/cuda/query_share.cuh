// What one block does for single queries: it answers up to four query heads of a group from the
// same share of their pairs, and of their features. Half a warp reads a row, 8 values a lane.
#pragma once

#include "backend/cuda/lola_view.cuh"

namespace lola {

// Loops over pairs and columns are not unrolled: a block runs through its code about once, and
// fetching instructions takes longer than what unrolling saves.
constexpr int kShareThreads = 256;
constexpr int kShareWarps = kShareThreads / 32;
constexpr int kShareHalfWarps = kShareThreads / 16;
constexpr int kShareColumns = 128;  // of half a warp, at a time
constexpr int kMostSplits = 16;

// Asks for `bytes` from `from` on to be brought to the second-level cache, as thread `thread` of
// `threads`.
__device__ inline void prefetch(const void* from, int64_t bytes, int64_t thread, int64_t threads) {
  constexpr int64_t kLine = 128;
  const auto* at = static_cast<const uint8_t*>(from);
#pragma unroll 1
  for (int64_t line = thread * kLine; line < bytes; line += threads * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at + line));
  }
}

// Each value summed over half a warp; lane l gets the sum of value l % count, in value[0]. count: a
// power of 2.
template <int count, int width = 8>
__device__ inline void spread_sums(float* value) {
  if constexpr (width >= count) {
#pragma unroll
    for (int i = 0; i < count; ++i) value[i] += __shfl_xor_sync(~0u, value[i], width);
  } else {
    const bool upper = (threadIdx.x & width) != 0;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float sent = upper ? value[i] : value[i + width];
      const float own = upper ? value[i + width] : value[i];
      value[i] = own + __shfl_xor_sync(~0u, sent, width);
    }
  }
  if constexpr (width > 1) spread_sums<count, width / 2>(value);
}

// The query heads that one block answers from the same pairs, and its share of pairs and features.
template <int kHeads>
struct Share {
  int first_head, heads;
  int kv_head, owner;
  int split, splits;

  __device__ Share(const LolaView& view, int block, int all_splits)
      : split(block % all_splits), splits(all_splits) {
    const int unit = block / all_splits, group_units = (view.group + kHeads - 1) / kHeads;
    kv_head = unit / group_units;
    first_head = kv_head * view.group + unit % group_units * kHeads;
    heads = min(kHeads, (kv_head + 1) * view.group - first_head);
    owner = view.owner_of(first_head);
  }
  __device__ int begin(int count) const { return split * ((count + splits - 1) / splits); }
  __device__ int end(int count) const {
    return min(count, (split + 1) * ((count + splits - 1) / splits));
  }
};

// The exact pairs that the query of a piece sees: first the window's, then the sparse cache's.
struct SeenPairs {
  const LolaView& view;
  const DevicePiece& piece;
  int kv_head, owner;

  __device__ int window() const {
    return static_cast<int>(piece.position + 1 - piece.window_begin);
  }
  __device__ int count() const { return window() + piece.cached; }
  // Without a branch, so that the loads of several rows can be on their way together.
  __device__ const uint8_t* row(int i, int64_t in_window, int64_t in_cache) const {
    const bool recent = i < window();
    const int64_t slot = recent ? ring_slot(view, piece.window_slot, i) : i - window();
    const int64_t part = recent ? kv_head : owner;
    const int64_t capacity = recent ? view.ring_capacity : view.sparse_capacity;
    return piece.memory + (recent ? in_window : in_cache) +
           (part * capacity + slot) * view.row_bytes;
  }
};

// Nothing since the step before has changed what a query reads, but for the pair that enters with
// it.
template <int kHeads>
__device__ inline void prefetch_share(const Share<kHeads>& share, const SeenPairs& pairs, int first,
                                      int end, bool linear) {
  const LolaView& view = pairs.view;
#pragma unroll 1
  for (int i = first + static_cast<int>(threadIdx.x); i < end; i += kShareThreads) {
    prefetch(pairs.row(i, view.ring_k, view.cache_k), view.row_bytes, 0, 1);
    prefetch(pairs.row(i, view.ring_v, view.cache_v), view.row_bytes, 0, 1);
  }
  const int begin = share.begin(view.features), rows = share.end(view.features) - begin;
#pragma unroll 1
  for (int h = 0; h < share.heads && linear; ++h) {
    const HiddenRows hidden = hidden_rows(view, pairs.piece.memory, share.first_head + h);
    prefetch(hidden.state + static_cast<int64_t>(begin) * view.head_dim,
             int64_t{4} * rows * view.head_dim, threadIdx.x, kShareThreads);
  }
}

// Shared memory of a block.
template <int kHeads>
struct OneMemory {
  float* weights;  // [pairs of the share, kHeads]: logits, then their exponentials
  float* exact;    // [kShareWarps, kHeads, head_dim] sums of the warps
  float* linear;   // [kShareHalfWarps, head_dim] sums of the half warps
  float* sums;     // [kShareHalfWarps] phi's of the half warps
  float* numbers;  // [kMostSplits, kHeads]
  float* state;    // [4, kHeads]: largest logit, sum of the exponentials, phi's, gate

  __device__ OneMemory(float* shared, int d)
      : weights(shared + (kShareWarps * kHeads + kShareHalfWarps) * d + kShareHalfWarps +
                (kMostSplits + 4) * kHeads),
        exact(shared),
        linear(exact + kShareWarps * kHeads * d),
        sums(linear + kShareHalfWarps * d),
        numbers(sums + kShareHalfWarps),
        state(numbers + kMostSplits * kHeads) {}
};

inline int64_t one_memory_bytes(const LolaView& view, int64_t heads, int64_t pairs) {
  return 4 * ((kShareWarps * heads + kShareHalfWarps) * view.head_dim + kShareHalfWarps +
              (kMostSplits + 4 + pairs) * heads);
}

// m.weights = the logits of the share's pairs, from the first on.
template <PairType type, int kHeads>
__device__ inline void share_logits(const Share<kHeads>& share, const SeenPairs& pairs, int first,
                                    int end, const float* q, const OneMemory<kHeads>& m) {
  constexpr int kAtOnce = kHeads == 1 ? 4 : 16 / kHeads;
  const int d = pairs.view.head_dim, lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
  const float scale = 1.0f / sqrtf(static_cast<float>(d));
#pragma unroll 1
  for (int base = first; base < end; base += kShareHalfWarps * kAtOnce) {
    float sums[kAtOnce * kHeads] = {};
#pragma unroll 1
    for (int c = lane * 8; c < d; c += kShareColumns) {
      Eight key[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = min(base + half_warp + n * kShareHalfWarps, end - 1);
        key[n] = load_eight<type>(pairs.row(i, pairs.view.ring_k, pairs.view.cache_k), c);
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const Eight own = load_eight(q + min(h, share.heads - 1) * d + c);
#pragma unroll
        for (int i = 0; i < kAtOnce * 8; ++i) {
          sums[i / 8 * kHeads + h] += own.v[i % 8] * key[i / 8].v[i % 8];
        }
      }
    }
    spread_sums<kAtOnce * kHeads>(sums);
    const int i = base + half_warp + lane / kHeads % kAtOnce * kShareHalfWarps;
    if (lane < kAtOnce * kHeads && i < end) {
      m.weights[(i - first) * kHeads + lane % kHeads] = sums[0] * scale;
    }
  }
}

// Logits become exponentials; m.state holds what they are relative to, and their sums.
template <int kHeads>
__device__ inline void share_weights(int count, const OneMemory<kHeads>& m) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float max = -INFINITY, sum = 0.0f;
#pragma unroll 1
  for (int i = lane; i < count * kHeads; i += 32) max = fmaxf(max, m.weights[i]);
  for (int offset = 16; offset >= kHeads; offset /= 2) {
    max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < count * kHeads; i += kShareThreads) {
    const float weight = expf(m.weights[i] - max);
    m.weights[i] = weight;
    sum += weight;
  }
  for (int offset = 16; offset >= kHeads; offset /= 2) {
    sum += __shfl_xor_sync(~0u, sum, offset);
  }
  if (lane < kHeads) m.numbers[warp * kHeads + lane] = sum;
  __syncthreads();
  if (threadIdx.x >= kHeads) return;
  sum = 0.0f;
  for (int w = 0; w < kShareWarps; ++w) sum += m.numbers[w * kHeads + threadIdx.x];
  m.state[threadIdx.x] = max;
  m.state[kHeads + threadIdx.x] = sum;
}

// m.exact = the warps' sums of weighted values.
template <PairType type, int kHeads>
__device__ inline void share_values(const SeenPairs& pairs, int first, int end,
                                    const OneMemory<kHeads>& m) {
  constexpr int kAtOnce = 4;
  const int d = pairs.view.head_dim, lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
#pragma unroll 1
  for (int block = 0; block < d; block += kShareColumns) {
    const int c = lane * 8 + block;
    float sums[kHeads * 8] = {};
#pragma unroll 1
    for (int base = first; base < end; base += kShareHalfWarps * kAtOnce) {
      Eight value[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = min(base + half_warp + n * kShareHalfWarps, end - 1);
        value[n] =
            load_eight<type>(pairs.row(i, pairs.view.ring_v, pairs.view.cache_v), min(c, d - 8));
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = base + half_warp + n * kShareHalfWarps;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float weight = i < end ? m.weights[(i - first) * kHeads + h] : 0.0f;
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[h * 8 + j] += weight * value[n].v[j];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kHeads * 8; ++i) {
      sums[i] += __shfl_xor_sync(~0u, sums[i], 16);
      if (threadIdx.x % 32 < 16 && c < d) {
        m.exact[(threadIdx.x / 32 * kHeads + i / 8) * d + c + i % 8] = sums[i];
      }
    }
  }
}

// m.linear = the half warps' shares of phi'Hs, m.sums of phi's. Half warp w is of head
// w % kHeads.
template <int kHeads>
__device__ inline void share_hidden(const Share<kHeads>& share, const LolaView& view,
                                    uint8_t* memory, const float* phi, const OneMemory<kHeads>& m) {
  constexpr int kAtOnce = 4, kEach = kShareHalfWarps / kHeads;
  const int d = view.head_dim, lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
  const int head = min(half_warp % kHeads, share.heads - 1);
  const int begin = share.begin(view.features) + half_warp / kHeads;
  const int end = share.end(view.features);
  const HiddenRows hidden = hidden_rows(view, memory, share.first_head + head);
  const float* own = phi + head * view.features;
  float total = 0.0f;
#pragma unroll 1
  for (int block = 0; block < d; block += kShareColumns) {
    const int c = min(lane * 8 + block, d - 8);
    Eight sums{};
#pragma unroll 1
    for (int base = begin; base < end; base += kEach * kAtOnce) {
      Eight row[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int64_t j = min(base + n * kEach, end - 1);
        row[n] = load_eight(hidden.state + j * d + c);
        if (hidden.pending_state != nullptr) {
          const Eight pending = load_eight(hidden.pending_state + j * d + c);
#pragma unroll
          for (int i = 0; i < 8; ++i) row[n].v[i] += pending.v[i];
        }
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int j = base + n * kEach;
        const float weight = j < end ? own[j] : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) sums.v[i] += weight * row[n].v[i];
        if (block > 0 || j >= end) continue;
        total += weight *
                 (hidden.sum[j] + (hidden.pending_sum != nullptr ? hidden.pending_sum[j] : 0.0f));
      }
    }
    float* to = m.linear + half_warp * d + lane * 8 + block;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (lane * 8 + block < d) to[i] = sums.v[i];
    }
  }
  if (lane == 0) m.sums[half_warp] = total;
}
}  // namespace lola

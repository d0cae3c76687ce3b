// Attention of single queries: all query heads of a group share what is read of its pairs, and the
// pairs and features of a group are split among blocks where few sessions are there to fill the
// GPU.
#include <algorithm>

#include "backend/cuda/lola_view.cuh"
#include "lola/mixing.h"

namespace lola {
namespace {

constexpr int kThreads = 256;
constexpr int kHalfWarps = kThreads / 16;
constexpr int kWarps = kThreads / 32;
constexpr int kBlock = 128;  // columns of half a warp, 8 a lane
constexpr int kMostSplits = 16;
constexpr int64_t kMostLogitBytes = 64 * 1024;
constexpr int kMapRows = 4;       // of half a warp, on their way before the query is there
constexpr int kPrefetchers = 92;  // blocks, beside those of the heads

// Asks for `bytes` from `from` on to be brought to the second-level cache, as thread `thread` of
// `threads`.
__device__ inline void prefetch(const void* from, int64_t bytes, int64_t thread, int64_t threads) {
  constexpr int64_t kLine = 128;
  const auto* at = static_cast<const uint8_t*>(from);
  for (int64_t line = thread * kLine; line < bytes; line += threads * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at + line));
  }
}

__device__ inline float half_warp_sum(float value) {
  for (int offset = 8; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
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

// Value i of a head after rotation.
__device__ inline float rotated(const RopeRows& rope, const float* head, int64_t row, int i) {
  const int pairs = static_cast<int>(rope.pairs);
  if (i >= 2 * pairs) return head[i];
  const bool interleaved = rope.layout == RopeLayout::kInterleaved;
  const int pair = interleaved ? i / 2 : i % pairs;
  const bool second = interleaved ? i % 2 == 1 : i >= pairs;
  const int other = interleaved ? i ^ 1 : second ? i - pairs : i + pairs;
  const float c = rope.cosine[row * pairs + pair], s = rope.sine[row * pairs + pair];
  return second ? head[i] * c + head[other] * s : head[i] * c - head[other] * s;
}

// phi [features] of x [head_dim], both in shared memory, by the block. `early` holds the rows of W
// that map_early() loaded.
struct EarlyRows {
  Eight row[kMapRows];
};

__device__ inline EarlyRows map_early(const float* w, int f, int d) {
  const int half_warp = threadIdx.x / 16, c = threadIdx.x % 16 * 8;
  EarlyRows early{};
#pragma unroll
  for (int n = 0; n < kMapRows; ++n) {
    const int j = half_warp + n * kHalfWarps;
    if (j < f && c < d) early.row[n] = load_eight(w + static_cast<int64_t>(j) * d + c);
  }
  return early;
}

__device__ inline void map_query(const FeatureMap& map, const float* w, const EarlyRows& early,
                                 const float* x, int d, float* phi) {
  const int f = static_cast<int>(map.map_size), half_warp = threadIdx.x / 16;
  const auto add = [&](const Eight& row, int c, float& sum) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += row.v[i] * x[c + i];
  };
  const auto put = [&](int j, float sum) {
    sum = half_warp_sum(sum);
    if (threadIdx.x % 16 == 0 && j < f) phi[j] = sum + (map.skip ? x[j] : 0.0f);
  };
  const int column = threadIdx.x % 16 * 8;
  const auto add_rest = [&](int j, int from, float& sum) {
    for (int c = from; c < d && j < f; c += kBlock) {
      add(load_eight(w + static_cast<int64_t>(j) * d + c), c, sum);
    }
  };
#pragma unroll
  for (int n = 0; n < kMapRows; ++n) {
    float sum = 0.0f;
    if (column < d) add(early.row[n], column, sum);
    add_rest(half_warp + n * kHalfWarps, column + kBlock, sum);
    put(half_warp + n * kHalfWarps, sum);
  }
  for (int begin = kMapRows * kHalfWarps; begin < f; begin += kHalfWarps) {
    float sum = 0.0f;
    add_rest(begin + half_warp, column, sum);
    put(begin + half_warp, sum);
  }
  __syncthreads();
  if (threadIdx.x < 32) activate<32>(map, f, [&](int j) -> float& { return phi[j]; });
  __syncthreads();
}

// A block per query head and per kv head of a piece: queries are rotated and mapped, the pair
// enters the window. Further blocks bring what is multiplied next nearer.
template <PairType type>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                   const __grid_constant__ AttentionRows rows, const __grid_constant__ RopeRows rope,
                   const __grid_constant__ NextBytes next, float* features) {
  extern __shared__ float shared[];
  const int d = view.head_dim, f = static_cast<int>(view.map.map_size);
  const int blocks = view.heads + view.kv_heads, head = blockIdx.x;
  if (head >= blocks) {
    const int64_t threads = int64_t{kPrefetchers} * kThreads;
    const int64_t thread = int64_t{head - blocks} * kThreads + threadIdx.x;
    for (int i = 0; i < next.count; ++i) prefetch(next.from[i], next.bytes[i], thread, threads);
    return wait_for_previous_kernel();
  }
  float *x = shared, *phi = shared + d;
  EarlyRows early;
  const float* w = view.query_map + static_cast<int64_t>(head) * f * d;
  if (head < view.heads) early = map_early(w, f, d);
  wait_for_previous_kernel();
  const DevicePiece piece = pieces[blockIdx.y];
  const int kv_head = head - view.heads;
  const int64_t row = piece.row;
  const float* own = head < view.heads ? rows.q + (row * view.heads + head) * d
                                       : rows.k + (row * view.kv_heads + kv_head) * d;
  for (int i = threadIdx.x; i < d; i += kThreads) x[i] = rotated(rope, own, row, i);
  __syncthreads();
  if (head >= view.heads) {
    const int64_t slot = piece.position % view.ring_capacity;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint8_t* key = ring_row(view, piece.memory, view.ring_k, kv_head, slot);
    uint8_t* value = ring_row(view, piece.memory, view.ring_v, kv_head, slot);
    if (warp == 0) store_row<type>(x, d, lane, key);
    if (warp == 1) {
      store_row<type>(rows.v + (row * view.kv_heads + kv_head) * d, d, lane, value);
    }
    return;
  }
  float* q = rope.q + (row * view.heads + head) * d;
  for (int i = threadIdx.x; i < d; i += kThreads) q[i] = x[i];
  if (piece.absorbed == 0) return;
  map_query(view.map, w, early, x, d, phi);
  float* to = features + (static_cast<int64_t>(blockIdx.y) * view.heads + head) * view.features;
  for (int j = threadIdx.x; j < view.features; j += kThreads) to[j] = phi[j];
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
  for (int i = first + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
    prefetch(pairs.row(i, view.ring_k, view.cache_k), view.row_bytes, 0, 1);
    prefetch(pairs.row(i, view.ring_v, view.cache_v), view.row_bytes, 0, 1);
  }
  const int begin = share.begin(view.features), rows = share.end(view.features) - begin;
  for (int h = 0; h < share.heads && linear; ++h) {
    const HiddenRows hidden = hidden_rows(view, pairs.piece.memory, share.first_head + h);
    prefetch(hidden.state + static_cast<int64_t>(begin) * view.head_dim,
             int64_t{4} * rows * view.head_dim, threadIdx.x, kThreads);
  }
}

// Shared memory of attend_kernel.
template <int kHeads>
struct OneMemory {
  float* weights;  // [pairs of the share, kHeads]: logits, then their exponentials
  float* exact;    // [kWarps, kHeads, head_dim] sums of the warps
  float* linear;   // [kHalfWarps, head_dim] sums of the half warps
  float* sums;     // [kHalfWarps] phi's of the half warps
  float* numbers;  // [kMostSplits, kHeads]
  float* state;    // [4, kHeads]: largest logit, sum of the exponentials, phi's

  __device__ OneMemory(float* shared, int d)
      : weights(shared + (kWarps * kHeads + kHalfWarps) * d + kHalfWarps +
                (kMostSplits + 4) * kHeads),
        exact(shared),
        linear(exact + kWarps * kHeads * d),
        sums(linear + kHalfWarps * d),
        numbers(sums + kHalfWarps),
        state(numbers + kMostSplits * kHeads) {}
};

int64_t one_memory_bytes(const LolaView& view, int64_t heads, int64_t pairs) {
  return 4 * ((kWarps * heads + kHalfWarps) * view.head_dim + kHalfWarps +
              (kMostSplits + 4 + pairs) * heads);
}

// m.weights = the logits of the share's pairs, from the first on.
template <PairType type, int kHeads>
__device__ inline void share_logits(const Share<kHeads>& share, const SeenPairs& pairs, int first,
                                    int end, const float* q, const OneMemory<kHeads>& m) {
  constexpr int kAtOnce = kHeads == 1 ? 4 : 16 / kHeads;
  const int d = pairs.view.head_dim, lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
  const float scale = 1.0f / sqrtf(static_cast<float>(d));
  for (int base = first; base < end; base += kHalfWarps * kAtOnce) {
    float sums[kAtOnce * kHeads] = {};
    for (int c = lane * 8; c < d; c += kBlock) {
      Eight key[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = min(base + half_warp + n * kHalfWarps, end - 1);
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
    const int i = base + half_warp + lane / kHeads % kAtOnce * kHalfWarps;
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
  for (int i = lane; i < count * kHeads; i += 32) max = fmaxf(max, m.weights[i]);
  for (int offset = 16; offset >= kHeads; offset /= 2) {
    max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * kHeads; i += kThreads) {
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
  for (int w = 0; w < kWarps; ++w) sum += m.numbers[w * kHeads + threadIdx.x];
  m.state[threadIdx.x] = max;
  m.state[kHeads + threadIdx.x] = sum;
}

// m.exact = the warps' sums of weighted values.
template <PairType type, int kHeads>
__device__ inline void share_values(const SeenPairs& pairs, int first, int end,
                                    const OneMemory<kHeads>& m) {
  constexpr int kAtOnce = 4;
  const int d = pairs.view.head_dim, lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
  for (int block = 0; block < d; block += kBlock) {
    const int c = lane * 8 + block;
    float sums[kHeads * 8] = {};
    for (int base = first; base < end; base += kHalfWarps * kAtOnce) {
      Eight value[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = min(base + half_warp + n * kHalfWarps, end - 1);
        value[n] = load_eight<type>(pairs.row(i, pairs.view.ring_v, pairs.view.cache_v),
                                    min(c, d - 8));
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int i = base + half_warp + n * kHalfWarps;
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
                                    uint8_t* memory, const float* phi,
                                    const OneMemory<kHeads>& m) {
  constexpr int kAtOnce = 4, kEach = kHalfWarps / kHeads;
  const int d = view.head_dim, lane = threadIdx.x % 16, half_warp = threadIdx.x / 16;
  const int head = min(half_warp % kHeads, share.heads - 1);
  const int begin = share.begin(view.features) + half_warp / kHeads;
  const int end = share.end(view.features);
  const HiddenRows hidden = hidden_rows(view, memory, share.first_head + head);
  const float* own = phi + head * view.features;
  float total = 0.0f;
  for (int block = 0; block < d; block += kBlock) {
    const int c = min(lane * 8 + block, d - 8);
    Eight sums{};
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
        total += weight * (hidden.sum[j] +
                           (hidden.pending_sum != nullptr ? hidden.pending_sum[j] : 0.0f));
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

// What the blocks of a query's splits leave for the last of them: sums, then numbers.
struct Partial {
  float* sums;     // [2, kHeads, head_dim]: exact, linear
  float* numbers;  // [3, kHeads]: largest logit, sum of exponentials, phi's

  __device__ Partial(float* partials, int64_t index, int heads, int d)
      : sums(partials + index * heads * (2 * d + 4)), numbers(sums + 2 * heads * d) {}
};

// The block's own sums for head h and column c.
template <int kHeads>
__device__ inline float2 block_sums(const OneMemory<kHeads>& m, int h, int c, int d, bool linear) {
  float2 sums = {0.0f, 0.0f};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sums.x += m.exact[(w * kHeads + h) * d + c];
#pragma unroll
  for (int w = 0; w < kHalfWarps / kHeads && linear; ++w) {
    sums.y += m.linear[(w * kHeads + h) * d + c];
  }
  return sums;
}

// Whether this block is the last of a query's splits to come here; the others' partials are then
// there to be read.
__device__ inline bool is_last(unsigned* counter, int splits) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) + 1 == static_cast<unsigned>(splits);
    if (last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// m.state of all splits together, and m.numbers: what a split's exponentials are to be multiplied
// with. A warp per head, a lane per split.
template <int kHeads>
__device__ inline void join_states(float* partials, int64_t first, int splits, int d,
                                   const OneMemory<kHeads>& m) {
  const int h = threadIdx.x / 32, split = threadIdx.x % 32;
  if (h < kHeads) {
    const bool there = split < splits;
    const float* numbers = Partial(partials, first + min(split, splits - 1), kHeads, d).numbers;
    const float own = there ? __ldcg(numbers + h) : -INFINITY;
    float sum = there ? __ldcg(numbers + kHeads + h) : 0.0f;
    float linear = there ? __ldcg(numbers + 2 * kHeads + h) : 0.0f;
    float max = own;
    for (int offset = 16; offset > 0; offset /= 2) {
      max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
    }
    const float factor = expf(own - max);
    sum *= factor;
    for (int offset = 16; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(~0u, sum, offset);
      linear += __shfl_xor_sync(~0u, linear, offset);
    }
    if (there) m.numbers[split * kHeads + h] = factor;
    if (split == 0) {
      m.state[h] = max, m.state[kHeads + h] = sum, m.state[2 * kHeads + h] = linear;
    }
  }
  __syncthreads();
}

// The splits' sums i, exact and linear, together.
template <int kHeads>
__device__ inline float2 join_sums(float* partials, int64_t first, int splits, int i, int d,
                                   const OneMemory<kHeads>& m) {
  constexpr int kAtOnce = 8;
  float2 sums = {0.0f, 0.0f};
  for (int base = 0; base < splits; base += kAtOnce) {
    float exact[kAtOnce], linear[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const Partial part(partials, first + min(base + n, splits - 1), kHeads, d);
      exact[n] = __ldcg(part.sums + i);
      linear[n] = __ldcg(part.sums + kHeads * d + i);
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (base + n >= splits) continue;
      sums.x += m.numbers[(base + n) * kHeads + i / d] * exact[n];
      sums.y += linear[n];
    }
  }
  return sums;
}

// A block per share of the heads of a piece of one token.
template <PairType type, int kHeads>
__global__ void __launch_bounds__(kThreads, 2)
    attend_kernel(const __grid_constant__ LolaView view, const DevicePiece* pieces,
                  const __grid_constant__ AttentionRows rows,
                  const __grid_constant__ ProductCopy copy, int splits,
                  const __grid_constant__ OneScratch scratch) {
  extern __shared__ float shared[];
  const DevicePiece piece = pieces[blockIdx.y];
  const Share<kHeads> share(view, blockIdx.x, splits);
  const int d = view.head_dim;
  const SeenPairs pairs{view, piece, share.kv_head, share.owner};
  const int first = share.begin(pairs.count()), end = share.end(pairs.count());
  const bool linear = piece.absorbed > 0;
  if (splits > 1) prefetch_share<kHeads>(share, pairs, first, end, linear);
  wait_for_previous_kernel();
  const OneMemory<kHeads> m(shared, d);
  const int64_t row = piece.row;
  const int64_t head = static_cast<int64_t>(blockIdx.y) * view.heads + share.first_head;
  share_logits<type>(share, pairs, first, end, rows.q + (row * view.heads + share.first_head) * d,
                     m);
  __syncthreads();
  share_weights(end - first, m);
  __syncthreads();
  share_values<type>(pairs, first, end, m);
  if (linear) share_hidden(share, view, piece.memory, scratch.features + head * view.features, m);
  __syncthreads();
  if (threadIdx.x < kHeads) {
    float sum = 0.0f;
    for (int w = 0; w < kHalfWarps / kHeads && linear; ++w) {
      sum += m.sums[w * kHeads + threadIdx.x];
    }
    m.state[2 * kHeads + threadIdx.x] = sum;
  }
  __syncthreads();
  const int64_t unit = static_cast<int64_t>(blockIdx.y) * (gridDim.x / splits) + blockIdx.x / splits;
  if (splits > 1) {
    const Partial own(scratch.partials, unit * splits + share.split, kHeads, d);
    for (int i = threadIdx.x; i < kHeads * d; i += kThreads) {
      const float2 sums = block_sums(m, i / d, i % d, d, linear);
      own.sums[i] = sums.x, own.sums[kHeads * d + i] = sums.y;
    }
    if (threadIdx.x < 3 * kHeads) own.numbers[threadIdx.x] = m.state[threadIdx.x];
    if (!is_last(scratch.counters + unit, splits)) return;
    join_states(scratch.partials, unit * splits, splits, d, m);
  }
  const AttentionOutput output{rows.out, copy, view.heads * d};
  for (int i = threadIdx.x; i < share.heads * d; i += kThreads) {
    const int h = i / d;
    const float2 sums =
        splits == 1 ? block_sums(m, h, i % d, d, linear)
                    : join_sums(scratch.partials, unit * splits, splits, i, d, m);
    const MixingWeights weights =
        linear ? mixing_weights(view.mixing, view.affine, view.gate[share.first_head + h],
                                m.state[h])
               : MixingWeights{1.0f, 0.0f};
    const float total =
        weights.exact * m.state[kHeads + h] + weights.linear * m.state[2 * kHeads + h];
    output.put_rounded(row, share.first_head * d + i,
                       weights.exact / total * sums.x + weights.linear / total * sums.y);
  }
  if (share.first_head == 0) output.pad(row);
}

// Query heads that a block answers.
int heads_at_once(const LolaView& view) {
  return view.head_scope || view.group == 1 ? 1 : view.group == 2 ? 2 : 4;
}

int64_t units_of(const LolaView& view) {
  return view.kv_heads * ceil_div(view.group, heads_at_once(view));
}

int splits_of(const LolaView& view, int64_t pieces, int multiprocessors) {
  const int64_t blocks = units_of(view) * pieces;
  const int64_t pairs = view.ring_capacity + view.sparse_capacity;
  const int64_t fit = ceil_div(pairs * heads_at_once(view) * 4, kMostLogitBytes);
  return static_cast<int>(std::clamp<int64_t>(2 * multiprocessors / blocks, fit, kMostSplits));
}

}  // namespace

bool answers_one(const LolaView& view) {
  const int64_t pairs = view.ring_capacity + view.sparse_capacity;
  return pairs * heads_at_once(view) * 4 <= kMostLogitBytes * kMostSplits;
}

OneSizes one_sizes(const LolaView& view, int64_t pieces, int multiprocessors) {
  const int64_t units = units_of(view) * pieces;
  const int64_t parts = units * splits_of(view, pieces, multiprocessors);
  return {pieces * view.heads * view.features,
          parts * heads_at_once(view) * (2 * view.head_dim + 4), units};
}

void lola_attend_one(const Stream& stream, const LolaView& view, const PieceSpan& pieces,
                     const AttentionRows& rows, const ProductCopy& copy, const RopeRows& rope,
                     const NextBytes& next, int multiprocessors, const OneScratch& scratch) {
  const int splits = splits_of(view, pieces.count, multiprocessors);
  const int prefetchers = next.count > 0 ? kPrefetchers : 0;
  const int64_t pairs = ceil_div(view.ring_capacity + view.sparse_capacity, splits);
  with_pair_type(view.type, [&]<PairType type>() {
    launch(stream, prepare_kernel<type>,
           grid_of(view.heads + view.kv_heads + prefetchers, pieces.count), kThreads,
           4 * (view.head_dim + view.features), view, pieces.data, rows, rope, next,
           scratch.features);
    const auto attend = [&]<int kHeads>() {
      launch(stream, attend_kernel<type, kHeads>, grid_of(units_of(view) * splits, pieces.count),
             kThreads, one_memory_bytes(view, kHeads, pairs), view, pieces.data, rows, copy, splits,
             scratch);
    };
    const int heads = heads_at_once(view);
    if (heads == 1) attend.template operator()<1>();
    if (heads == 2) attend.template operator()<2>();
    if (heads == 4) attend.template operator()<4>();
  });
}

}  // namespace lola

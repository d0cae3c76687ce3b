// Attention of single queries: all query heads of a group share what is read of its pairs, and the
// pairs and features of a group are split among blocks where few sessions are there to fill the
// GPU.
#include <algorithm>

#include "backend/cuda/last_block.cuh"
#include "backend/cuda/query_share.cuh"
#include "lola/mixing.h"

namespace lola {
namespace {

constexpr int64_t kMostLogitBytes = 64 * 1024;

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
  for (int w = 0; w < kShareWarps; ++w) sums.x += m.exact[(w * kHeads + h) * d + c];
#pragma unroll
  for (int w = 0; w < kShareHalfWarps / kHeads && linear; ++w) {
    sums.y += m.linear[(w * kHeads + h) * d + c];
  }
  return sums;
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
#pragma unroll 1
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
__global__ void __launch_bounds__(kShareThreads, 2)
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
  const OneMemory<kHeads> m(shared, d);
  if (threadIdx.x < share.heads) {
    m.state[3 * kHeads + threadIdx.x] = view.gate[share.first_head + threadIdx.x];
  }
  prefetch_share<kHeads>(share, pairs, first, end, linear && splits > 1);
  wait_for_previous_kernel();
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
    for (int w = 0; w < kShareHalfWarps / kHeads && linear; ++w) {
      sum += m.sums[w * kHeads + threadIdx.x];
    }
    m.state[2 * kHeads + threadIdx.x] = sum;
  }
  __syncthreads();
  const int64_t unit =
      static_cast<int64_t>(blockIdx.y) * (gridDim.x / splits) + blockIdx.x / splits;
  if (splits > 1) {
    const Partial own(scratch.partials, unit * splits + share.split, kHeads, d);
#pragma unroll 1
    for (int i = threadIdx.x; i < kHeads * d; i += kShareThreads) {
      const float2 sums = block_sums(m, i / d, i % d, d, linear);
      own.sums[i] = sums.x, own.sums[kHeads * d + i] = sums.y;
    }
    if (threadIdx.x < 3 * kHeads) own.numbers[threadIdx.x] = m.state[threadIdx.x];
    if (!is_last_block(scratch.counters + unit, static_cast<unsigned>(splits))) return;
    join_states(scratch.partials, unit * splits, splits, d, m);
  }
  const AttentionOutput output{rows.out, copy, view.heads * d};
#pragma unroll 1
  for (int i = threadIdx.x; i < share.heads * d; i += kShareThreads) {
    const int h = i / d;
    const float2 sums = splits == 1 ? block_sums(m, h, i % d, d, linear)
                                    : join_sums(scratch.partials, unit * splits, splits, i, d, m);
    const MixingWeights weights =
        linear ? mixing_weights(view.mixing, view.affine, m.state[3 * kHeads + h], m.state[h])
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
                     const AttentionRows& rows, const ProductCopy& copy, int multiprocessors,
                     const OneScratch& scratch) {
  const int splits = splits_of(view, pieces.count, multiprocessors);
  const int64_t pairs = ceil_div(view.ring_capacity + view.sparse_capacity, splits);
  with_pair_type(view.type, [&]<PairType type>() {
    const auto attend = [&]<int kHeads>() {
      launch(stream, attend_kernel<type, kHeads>, grid_of(units_of(view) * splits, pieces.count),
             kShareThreads, one_memory_bytes(view, kHeads, pairs), view, pieces.data, rows, copy,
             splits, scratch);
    };
    const int heads = heads_at_once(view);
    if (heads == 1) attend.template operator()<1>();
    if (heads == 2) attend.template operator()<2>();
    if (heads == 4) attend.template operator()<4>();
  });
}

}  // namespace lola
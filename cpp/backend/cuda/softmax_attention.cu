#include "backend/cuda/exact_rows.cuh"
#include "backend/cuda/one_row.cuh"
#include "backend/cuda/softmax_attention.cuh"

namespace lola {
namespace {

constexpr int kAppendWarps = 8;
constexpr int kSplits = 32;        // ranges of a cache that one query is answered from
constexpr int kRangePairs = 1024;  // of a range, at a time

static_assert(kRangePairs % kKvPageTokens == 0);
constexpr int kRangePages = kRangePairs / kKvPageTokens + 1;  // that a range may touch

// A warp per stored row.
template <PairType type, PairTarget target>
__global__ void append_kernel(const __grid_constant__ PairRing ring, const DevicePiece* pieces,
                              const __grid_constant__ AttentionRows rows, uint8_t* pass) {
  wait_for_previous_kernel();
  const DevicePiece& piece = pieces[blockIdx.y];
  const int i = blockIdx.x * kAppendWarps + threadIdx.x / 32;
  const int token = i / 2 / ring.kv_heads, kv_head = i / 2 % ring.kv_heads;
  if (token >= piece.tokens) return;
  // Rows that later ones would overwrite.
  if (target == PairTarget::kRing && token < piece.tokens - ring.ring_capacity) return;
  const int64_t in_pass = piece.row + token, at = piece.position + token;
  uint8_t* memory = target == PairTarget::kPages  ? piece.pages[at / kKvPageTokens]
                    : target == PairTarget::kRing ? piece.memory
                                                  : pass;
  const int64_t slot = target == PairTarget::kPass ? in_pass : at % ring.ring_capacity;
  uint8_t* row = ring_row(ring, memory, i % 2 == 0 ? ring.ring_k : ring.ring_v, kv_head, slot);
  store_row<type>(
      (i % 2 == 0 ? rows.k : rows.v) + (in_pass * ring.kv_heads + kv_head) * ring.head_dim,
      ring.head_dim, threadIdx.x % 32, row);
}

// A block per kRows queries of one head.
template <PairType type, int kDim>
__global__ void __launch_bounds__(RowTile<kDim>::kThreads, kDim <= 128 ? 2 : 1)
    many_kernel(const __grid_constant__ PairRing cache, const DevicePiece* pieces,
                const __grid_constant__ AttentionRows rows,
                const __grid_constant__ ProductCopy copy) {
  static_assert(kKvPageTokens % kPairsAtOnce<type, kDim> == 0, "a tile of pairs lies in one page");
  extern __shared__ __align__(16) float shared[];
  wait_for_previous_kernel();
  const DevicePiece piece = pieces[blockIdx.z];
  const int first = blockIdx.x * RowTile<kDim>::kRows, head = blockIdx.y;
  if (first >= piece.tokens) return;
  const int d = cache.head_dim, tokens = min(RowTile<kDim>::kRows, piece.tokens - first);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;
  const int64_t row = piece.row + first;
  const Lane lane;
  const ExactMemory<type, kDim> m(shared, d);
  load_rows<kDim>(m.rows, m.rows_stride, d, tokens, [&](int r) {
    return reinterpret_cast<const uint8_t*>(rows.q + ((row + r) * cache.heads + head) * d);
  });
  const int before = static_cast<int>(piece.position) + first;
  ExactRows<kDim> exact;
  add_pairs<type, kDim>(
      m, lane, d, before + tokens, warp_row < tokens,
      [&](int i, bool value) -> const uint8_t* {
        return ring_row(cache, piece.pages[i / kKvPageTokens], value ? cache.ring_v : cache.ring_k,
                        head / cache.group, i % kKvPageTokens);
      },
      [&](int r) { return before + r + 1; }, exact);
  const AttentionOutput output{rows.out, copy, cache.heads * d};
  if (warp_row < tokens) {
    const float weight[2] = {1.0f / exact.sum[0], 1.0f / exact.sum[1]};
    exact.y.scale(weight);
    output.put_rows(lane, row + warp_row, tokens - warp_row, head * d, d, exact.y);
  }
  for (int r = 0; r < tokens && head == 0; ++r) output.pad(row + r);
}

// What one block knows of its range: y [head_dim], then the largest logit and the sum of weights.
__device__ inline float* partial_of(float* partials, int64_t piece, int head, int heads, int split,
                                    int d) {
  return partials + ((piece * heads + head) * kSplits + split) * (d + 2);
}

// A block per range of one head of a piece of one token.
template <PairType type>
__global__ void __launch_bounds__(kOneWarps * 32)
    one_kernel(const __grid_constant__ PairRing cache, const DevicePiece* pieces,
               const __grid_constant__ AttentionRows rows, float* partials) {
  extern __shared__ float shared[];
  __shared__ float logits[kRangePairs], sums[kOneWarps];
  __shared__ uint8_t* pages[kRangePages];
  wait_for_previous_kernel();
  const DevicePiece piece = pieces[blockIdx.z];
  const int head = blockIdx.y, d = cache.head_dim, kv_head = head / cache.group;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pairs = piece.position + 1, range = (pairs + kSplits - 1) / kSplits;
  const int64_t begin = blockIdx.x * range, end = min(pairs, begin + range);
  float* q = shared;
  float* parts = q + d;  // [kOneWarps, d]
  float* out = partial_of(partials, blockIdx.z, head, cache.heads, blockIdx.x, d);
  for (int c = threadIdx.x; c < d; c += blockDim.x) {
    q[c] = rows.q[(static_cast<int64_t>(piece.row) * cache.heads + head) * d + c];
    out[c] = 0.0f;
  }
  float all_max = -INFINITY, all_sum = 0.0f;
  for (int64_t from = begin; from < end; from += kRangePairs) {
    const int count = static_cast<int>(min(int64_t{kRangePairs}, end - from));
    const int64_t first_page = from / kKvPageTokens;
    const int first_slot = static_cast<int>(from % kKvPageTokens);
    const auto row = [&](int64_t offset, int i) {
      const int at = first_slot + i;
      return ring_row(cache, pages[at / kKvPageTokens], offset, kv_head, at % kKvPageTokens);
    };
    __syncthreads();
    if (static_cast<int>(threadIdx.x) * kKvPageTokens < first_slot + count) {
      pages[threadIdx.x] = piece.pages[first_page + threadIdx.x];
    }
    __syncthreads();
    one_products(
        q, d, count, 1.0f / sqrtf(static_cast<float>(d)),
        [&](int i, int c) { return load_eight<type>(row(cache.ring_k, i), c); }, logits);
    __syncthreads();
    float max = all_max;
    for (int i = lane; i < count; i += 32) max = fmaxf(max, logits[i]);
    for (int offset = 16; offset > 0; offset /= 2)
      max = fmaxf(max, __shfl_xor_sync(~0u, max, offset));
    float sum = 0.0f;
    one_weighted(
        d, count,
        [&](int i) {
          const float w = expf(logits[i] - max);
          sum += w;
          return w;
        },
        [&](int i, int c) { return load_eight<type>(row(cache.ring_v, i), c); }, parts);
    sum += __shfl_xor_sync(~0u, sum, 16);  // of both half warps
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    const float rescale = all_max == -INFINITY ? 0.0f : expf(all_max - max);
    all_sum *= rescale;
    for (int w = 0; w < kOneWarps; ++w) all_sum += sums[w];
    all_max = max;
    for (int c = threadIdx.x; c < d; c += blockDim.x) {
      float y = out[c] * rescale;
      for (int w = 0; w < kOneWarps; ++w) y += parts[w * d + c];
      out[c] = y;
    }
  }
  if (threadIdx.x == 0) out[d] = all_max, out[d + 1] = all_sum;
}

// A block per head of a piece, a thread per column.
__global__ void merge_kernel(const __grid_constant__ PairRing cache, const DevicePiece* pieces,
                             float* partials, const __grid_constant__ AttentionOutput output) {
  wait_for_previous_kernel();
  const int head = blockIdx.x, d = cache.head_dim;
  const int64_t row = pieces[blockIdx.y].row;
  const auto partial = [&](int split) {
    return partial_of(partials, blockIdx.y, head, cache.heads, split, d);
  };
  float max = -INFINITY;
  for (int split = 0; split < kSplits; ++split) max = fmaxf(max, partial(split)[d]);
  for (int c = threadIdx.x; c < d; c += blockDim.x) {
    float y = 0.0f, sum = 0.0f;
    for (int split = 0; split < kSplits; ++split) {
      const float* p = partial(split);
      const float weight = p[d + 1] == 0.0f ? 0.0f : expf(p[d] - max);
      y += weight * p[c];
      sum += weight * p[d + 1];
    }
    output.put_rounded(row, head * d + c, y / sum);
  }
  if (head == 0) output.pad(row);
}

}  // namespace

void append_pairs(const Stream& stream, const PairRing& ring, const PieceSpan& pieces,
                  const AttentionRows& rows, PairTarget target, uint8_t* pass) {
  const int64_t stored = static_cast<int64_t>(pieces.most_tokens) * ring.kv_heads * 2;
  const auto append = [&]<PairType type, PairTarget to>() {
    launch(stream, append_kernel<type, to>, grid_of(ceil_div(stored, kAppendWarps), pieces.count),
           kAppendWarps * 32, 0, ring, pieces.data, rows, pass);
  };
  with_pair_type(ring.type, [&]<PairType type>() {
    if (target == PairTarget::kRing) append.template operator()<type, PairTarget::kRing>();
    if (target == PairTarget::kPages) append.template operator()<type, PairTarget::kPages>();
    if (target == PairTarget::kPass) append.template operator()<type, PairTarget::kPass>();
  });
}

int64_t softmax_partials(const PairRing& cache, const PieceSpan& tasks) {
  return int64_t{tasks.count} * cache.heads * kSplits * (cache.head_dim + 2);
}

void softmax_attend(const Stream& stream, const PairRing& cache, const PieceSpan& tasks,
                    const AttentionRows& rows, const ProductCopy& copy, float* partials) {
  with_pair_type(cache.type, [&]<PairType type>() {
    if (tasks.most_tokens == 1) {
      launch(stream, one_kernel<type>, grid_of(kSplits, cache.heads, tasks.count), kOneWarps * 32,
             (1 + kOneWarps) * cache.head_dim * 4, cache, tasks.data, rows, partials);
      launch(stream, merge_kernel, grid_of(cache.heads, tasks.count), 128, 0, cache, tasks.data,
             partials, AttentionOutput{rows.out, copy, cache.heads * cache.head_dim});
    } else {
      with_tile(cache.head_dim, [&]<int kDim>() {
        launch(stream, many_kernel<type, kDim>,
               grid_of(ceil_div(tasks.most_tokens, RowTile<kDim>::kRows), cache.heads, tasks.count),
               RowTile<kDim>::kThreads, ExactMemory<type, kDim>::bytes(cache.head_dim), cache,
               tasks.data, rows, copy);
      });
    }
  });
}

}  // namespace lola

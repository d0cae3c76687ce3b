#include "backend/cuda/one_row.cuh"
#include "backend/cuda/softmax_attention.cuh"

namespace lola {
namespace {

constexpr int kAppendWarps = 8;
constexpr int kSplits = 32;        // ranges of a cache that one query is answered from
constexpr int kRangePairs = 1024;  // of a range, at a time

static_assert(kKvPageTokens % kTileVectors == 0, "a tile of pairs lies in one page");
static_assert(kRangePairs % kKvPageTokens == 0);
constexpr int kRangePages = kRangePairs / kKvPageTokens + 1;  // that a range may touch

// A warp per stored row.
template <PairType type, bool paged>
__global__ void append_kernel(const __grid_constant__ PairRing ring, const DevicePiece* pieces,
                              const __grid_constant__ AttentionRows rows) {
  wait_for_previous_kernel();
  const DevicePiece piece = pieces[blockIdx.y];
  const int i = blockIdx.x * kAppendWarps + threadIdx.x / 32;
  const int token = i / 2 / ring.kv_heads, kv_head = i / 2 % ring.kv_heads;
  if (token >= piece.tokens) return;
  const int64_t in = static_cast<int64_t>(piece.row + token) * ring.kv_heads + kv_head;
  const int64_t at = piece.position + token;
  uint8_t* memory = paged ? piece.pages[at / kKvPageTokens] : piece.memory;
  uint8_t* row = ring_row(ring, memory, i % 2 == 0 ? ring.ring_k : ring.ring_v, kv_head,
                          at % ring.ring_capacity);
  store_row<type>((i % 2 == 0 ? rows.k : rows.v) + in * ring.head_dim, ring.head_dim,
                  threadIdx.x % 32, row);
}

// A block per 16 queries of one head.
template <PairType type>
__global__ void __launch_bounds__(kTileThreads)
    many_kernel(const __grid_constant__ PairRing cache, const DevicePiece* pieces,
                const __grid_constant__ AttentionRows rows,
                const __grid_constant__ ProductCopy copy) {
  extern __shared__ float shared[];
  wait_for_previous_kernel();
  const DevicePiece piece = pieces[blockIdx.z];
  const int first = blockIdx.x * kTileRows, head = blockIdx.y, kv_head = head / cache.group;
  if (first >= piece.tokens) return;
  const int d = cache.head_dim, tokens = min(kTileRows, piece.tokens - first);
  const TileMemory m(shared, d, 0);
  const LanePart part;
  load_rows(m, d, tokens, [&](int r) {
    return rows.q + ((static_cast<int64_t>(piece.row) + first + r) * cache.heads + head) * d;
  });
  ExactPart exact;
  const int64_t now = piece.position + first, end = now + tokens;
  for (int64_t begin = 0; begin < end; begin += kTileVectors) {
    uint8_t* page = piece.pages[begin / kKvPageTokens];
    const int64_t slot = begin % kKvPageTokens;
    const auto row = [&](int64_t offset) {
      return [&cache, page, slot, kv_head, offset](int v) -> const uint8_t* {
        return ring_row(cache, page, offset, kv_head, slot + v);
      };
    };
    add_pairs<type>(
        m, part, d, static_cast<int>(min(int64_t{kTileVectors}, end - begin)), row(cache.ring_k),
        row(cache.ring_v),
        [&](int r) { return static_cast<int>(min(int64_t{kTileVectors}, now + r + 1 - begin)); },
        1.0f / sqrtf(static_cast<float>(d)), exact);
  }
  float weight[2];
  for (int i = 0; i < 2; ++i) weight[i] = 1.0f / exact.sum[i];
  exact.y.scale(weight);
  const AttentionOutput output{rows.out, copy, cache.heads * d};
  for_sums(part, d, exact.y, [&](int r, int column, float value) {
    if (r < tokens) output.put(piece.row + first + r, head * d + column, value);
  });
  for (int r = 0; r < tokens && head == 0; ++r) output.pad(piece.row + first + r);
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
                  const AttentionRows& rows, bool paged) {
  const int64_t stored = static_cast<int64_t>(pieces.most_tokens) * ring.kv_heads * 2;
  with_pair_type(ring.type, [&]<PairType type>() {
    const auto kernel = paged ? append_kernel<type, true> : append_kernel<type, false>;
    launch(stream, kernel, grid_of(ceil_div(stored, kAppendWarps), pieces.count), kAppendWarps * 32,
           0, ring, pieces.data, rows);
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
      launch(stream, many_kernel<type>,
             grid_of(ceil_div(tasks.most_tokens, kTileRows), cache.heads, tasks.count),
             kTileThreads, tile_memory_bytes(cache.head_dim, 0), cache, tasks.data, rows, copy);
    }
  });
}

}  // namespace lola
